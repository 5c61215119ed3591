"""Graph foundation models: networks over a knowledge graph that a question conditions."""
