"""The networks: question and passage encoders, the RAG model over them, its decoding and its saved form."""
