"""The networks: question and passage encoders, the RAG model over them, its decoding and its saved form."""

import logging

# It remarks on kernels that it could fetch, and on half precision in which it always computes.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# Packed samples have no mask on purpose.
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: not str(record.msg).startswith("We strongly recommend passing in an `attention_mask`")
)
