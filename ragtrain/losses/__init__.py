"""What a trainer minimises, as functions of tensors.

Every objective over retrieved passages is a function of the same two: ``loglik`` (batch, n_docs), the generator's
log-likelihood of the target under each passage (for ``rag_token`` of each token), and ``scores`` (batch, n_docs), the
retriever's inner products.

Everything is computed in float32 whatever comes in: inner products of DPR vectors are 60 to 90, where neighbouring
bfloat16 numbers are half a nat apart.

output.py       LossOutput: a sum, what it is divided by, and other figures
marginal.py     rag-sequence: the marginal likelihood over passages
token.py        rag-token: the marginal likelihood of each token
distill.py      pdist and emdr: the generator teaches the retriever
contrastive.py  InfoNCE: passages that answer against all others

Those of graph models are functions of the scores of entities:

ranking.py      self-adversarial and listwise cross-entropies over entities, and over documents

Those of compressors stand beside the cross-entropy of answers:

compression.py  a teacher's distributions over tokens, and a reranker's scores
"""

from ragtrain.losses.compression import score_squared_error, token_divergence
from ragtrain.losses.contrastive import info_nce
from ragtrain.losses.distill import emdr, pdist
from ragtrain.losses.marginal import RagSequenceLoss, Smoothing, entropy, log_joint, log_prior, rag_sequence
from ragtrain.losses.output import LossOutput
from ragtrain.losses.ranking import (
    document_cross_entropy,
    document_scores,
    list_cross_entropy,
    scored_documents,
    self_adversarial_bce,
)
from ragtrain.losses.token import RagTokenLoss, rag_token

__all__ = [
    "LossOutput", "RagSequenceLoss", "RagTokenLoss", "Smoothing", "document_cross_entropy", "document_scores", "emdr",
    "entropy", "info_nce", "list_cross_entropy", "log_joint", "log_prior", "pdist", "rag_sequence", "rag_token",
    "score_squared_error", "scored_documents", "self_adversarial_bce", "token_divergence",
]  # fmt: skip
