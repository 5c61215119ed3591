"""Numbers about answers and retrieval, and intervals for all of them.

Nothing here imports torch, and numpy, rouge-score and sacrebleu are imported where they are used only, so that a command's
help stays quick. All scores are fractions between 0 and 1; tables turn them into percent. A score is nan where there is
nothing to judge (recall without gold items, what an empty prediction takes from its passages): such a question is missing
from a mean, and is never counted as 0.

words.py      how texts are compared; which passages hold an answer
answers.py    a prediction against right answers: exact match, F1, contains, recall of groups of answers
overlap.py    the same of longer answers: ROUGE-L, BLEU, chrF
grounding.py  a prediction against the passages it was written from, without a judge
rankings.py   rankings against gold items: recall, MRR, nDCG, hits
compat.py     the same scores by the rules of KILT and RAG-FiT; all scores of one prediction
intervals.py  Wilson's, and the bootstrap's

``ragtrain.scores`` has them as objects of Hugging Face's ``evaluate``.
"""

from __future__ import annotations

from ragtrain.metrics.answers import contains, exact_match, f1, recall_em
from ragtrain.metrics.compat import (
    Compat,
    Score,
    answer_scores,
    grounding_scores,
    kilt_r_precision,
    kilt_recall_at,
    ragfit_recall_em,
    ranking_scores,
    score,
)
from ragtrain.metrics.grounding import answer_in_context, k_precision, quoted_spans, quoted_support
from ragtrain.metrics.intervals import bootstrap_mean, paired_bootstrap, wilson
from ragtrain.metrics.overlap import bleu, chrf, corpus_bleu, corpus_chrf, rouge_l
from ragtrain.metrics.rankings import (
    any_hit_at,
    filtered_ranks,
    gold_ranks,
    hits_at,
    ndcg_at,
    recall_at,
    reciprocal_rank,
)
from ragtrain.metrics.words import answer_matrix, answer_recall, first_hit, has_answer, normalize_answer

__all__ = [
    "Compat",
    "Score",
    "answer_in_context",
    "answer_matrix",
    "answer_recall",
    "answer_scores",
    "any_hit_at",
    "bleu",
    "bootstrap_mean",
    "chrf",
    "contains",
    "corpus_bleu",
    "corpus_chrf",
    "exact_match",
    "f1",
    "filtered_ranks",
    "first_hit",
    "gold_ranks",
    "grounding_scores",
    "has_answer",
    "hits_at",
    "k_precision",
    "kilt_r_precision",
    "kilt_recall_at",
    "ndcg_at",
    "normalize_answer",
    "paired_bootstrap",
    "quoted_spans",
    "quoted_support",
    "ragfit_recall_em",
    "ranking_scores",
    "recall_at",
    "recall_em",
    "reciprocal_rank",
    "rouge_l",
    "score",
    "wilson",
]
