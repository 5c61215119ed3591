"""The metrics as objects of Hugging Face's ``evaluate``, which work without a network.

``evaluate.load`` fetches a script from the hub even for exact match; these come with the package, and are the very functions
that ``ragtrain eval`` counts with::

    from ragtrain import scores

    em = scores.load("em")
    em.add_batch(predictions=["the Eiffel tower"], references=[["Eiffel Tower"]])
    em.compute()  # {"em": 1.0, "em_low": 0.207, "em_high": 1.0, "n": 1, "missing": 0}

They may be given to ``evaluate.combine``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import evaluate
from datasets import Features, List, Value

from ragtrain import metrics
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Inputs = Literal["answers", "groups", "context", "passages", "ranking"]

_TEXT, _TEXTS = Value("string"), List(Value("string"))
#: What predictions and references are, in every form that is taken.
_FEATURES: Mapping[Inputs, tuple[tuple[Any, Any], ...]] = {
    "answers": ((_TEXT, _TEXTS), (_TEXT, _TEXT)),
    "groups": ((_TEXT, List(_TEXTS)), (_TEXT, _TEXTS)),
    "context": ((_TEXT, _TEXTS), (_TEXT, _TEXT)),
    "passages": ((_TEXTS, _TEXTS),),
    "ranking": ((_TEXTS, _TEXTS),),
}
_INPUTS: Mapping[Inputs, str] = {
    "answers": "predictions: texts. references: for each the right answers, any of which will do, or one text.",
    "groups": "predictions: texts. references: for each the groups of answers, one of each to be given; or one group.",
    "context": "predictions: texts. references: for each the passages that it was written from, or one text.",
    "passages": "predictions: for each question the passages found, best first. references: its answers. k: depths.",
    "ranking": "predictions: for each question ids of what was found, best first, each once. references: ids of the gold items.",
}
_DEPTHS = (1, 5, 20)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a metric is.

    Attributes:
        description: in a sentence or two.
        inputs: what it reads.
        rule: prediction, references and depth (0 where depth says nothing) → score, nan where there is none; without one,
            the score of that name in ``metrics.score``.
        citation: where it is from.
        rate: whether scores are 0 or 1, so that the interval is Wilson's; else it is the bootstrap's.
        depths: whether there is one score for each depth k.
        corpus: what is counted of all predictions together, beside the mean.
    """

    description: str
    inputs: Inputs
    rule: Callable[[Any, Any, int], float] | None
    citation: str
    rate: bool = False
    depths: bool = False
    corpus: Callable[[Sequence[str], Sequence[Sequence[str]]], float] | None = None


_SQUAD = "Rajpurkar et al., SQuAD: 100,000+ Questions, EMNLP 2016; Rajpurkar, Jia and Liang, ACL 2018 (v2.0)."
_DPR = "Karpukhin et al., Dense Passage Retrieval for Open-Domain Question Answering, EMNLP 2020."


def _answers(citation: str, description: str, **more: Any) -> Spec:  # noqa: ANN401 - fields of Spec
    return Spec(description, "answers", None, citation, **more)


def _ranking(name: str, citation: str, description: str, **more: Any) -> Spec:  # noqa: ANN401 - fields of Spec
    def rule(ranking: Sequence[str], gold: Sequence[str], k: int) -> float:
        found = metrics.ranking_scores(ranking, gold, (k,) if k else ())
        return found.get(f"{name}@{k}" if k else name, math.nan)

    return Spec(description, "ranking", rule, citation, **more)


def _answer_recall(texts: Sequence[str], answers: Sequence[str], k: int) -> float:
    return metrics.answer_recall([metrics.first_hit(answers, texts[:k])], k)


SPECS: Mapping[str, Spec] = {
    "em": _answers(_SQUAD, "Exact match with any right answer, in SQuAD's normal form.", rate=True),
    "f1": _answers(_SQUAD, "Greatest F1 of words with any right answer, in SQuAD's normal form."),
    "contains": _answers(
        _SQUAD, "Whether a right answer stands in the prediction, word for word, in SQuAD's normal form.", rate=True
    ),
    "recall_em": Spec(
        "Share of the groups of answers of which the prediction contains one.",
        "groups",
        lambda prediction, groups, _: metrics.recall_em(prediction, groups),
        "Stelmakh et al., ASQA: Factoid Questions Meet Long-Form Answers, EMNLP 2022.",
    ),
    "rouge_l": _answers(
        "Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.",
        "Greatest F of the longest common subsequence of words with any right answer.",
    ),
    "bleu": _answers(
        "Papineni et al., ACL 2002; Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018.",
        "Mean BLEU of each prediction, and corpus_bleu of all together; by sacrebleu, 0 to 1.", corpus=metrics.corpus_bleu,
    ),
    "chrf": _answers(
        "Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015.",
        "Mean chrF of each prediction, and corpus_chrf of all together; by sacrebleu, 0 to 1.", corpus=metrics.corpus_chrf,
    ),
    "k_precision": Spec(
        "Share of the prediction's words that its passages hold.",
        "context",
        lambda prediction, texts, _: metrics.k_precision(prediction, texts),
        "Adlakha et al., Evaluating Correctness and Faithfulness of Instruction-Following Models for QA, TACL 2024.",
    ),
    "answer_in_context": Spec(
        "Whether the whole prediction stands in one of its passages, word for word.",
        "context",
        lambda prediction, texts, _: metrics.answer_in_context(prediction, texts),
        _SQUAD,
        rate=True,
    ),
    "quoted_support": Spec(
        "Share of the prediction's quotations that stand in one of its passages, word for word.",
        "context",
        lambda prediction, texts, _: metrics.quoted_support(prediction, texts),
        "Zhang et al., RAFT: Adapting Language Model to Domain Specific RAG, 2024 (its marks of quotations).",
    ),
    "answer_recall": Spec(
        "Whether one of the first k passages holds a right answer, by DPR's tokens.", "passages", _answer_recall, _DPR,
        rate=True, depths=True,
    ),
    "supporting_recall": _ranking(
        "supporting_recall", "Yang et al., HotpotQA, EMNLP 2018.",
        "Share of the gold items among the first k.", depths=True,
    ),
    "hits": _ranking("hits", "Buckley and Voorhees, trec_eval (its measure success).", "Whether any gold item is among the first k.", rate=True, depths=True),
    "ndcg": _ranking(
        "ndcg", "Järvelin and Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, ACM TOIS 2002.",
        "Normalised discounted cumulative gain of the first k, every gold item worth 1.", depths=True,
    ),
    "mrr": _ranking("mrr", "Voorhees, The TREC-8 Question Answering Track Report, 1999.", "1 by the place of the first gold item."),
}  # fmt: skip


class Score(evaluate.Metric):  # type: ignore[misc]  # the library has no types
    """One of our metrics as ``evaluate.Metric``: ``add``, ``add_batch``, ``compute``."""

    def __init__(self, name: str, compat: metrics.Compat, **options: Any) -> None:  # noqa: ANN401 - of evaluate
        self.spec = SPECS[name]
        super().__init__(config_name=compat, **options)
        self._module_info.module_name = name

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.spec.description,
            citation=self.spec.citation,
            inputs_description=_INPUTS[self.spec.inputs],
            features=[
                Features({"predictions": predictions, "references": references})
                for predictions, references in _FEATURES[self.spec.inputs]
            ],
        )

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        k: int | Sequence[int] = _DEPTHS,
        *,
        seed: int = 0,
        per_question: bool = False,
    ) -> dict[str, Any]:
        references = [_listed(own, self.spec.inputs) for own in references]
        results: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for depth in ((k,) if isinstance(k, int) else k) if self.spec.depths else (0,):
            key = f"{self.name}@{depth}" if depth else self.name
            values = [self._score(*pair, depth) for pair in zip(predictions, references, strict=True)]
            known = [value for value in values if not math.isnan(value)]
            results |= _described(key, known, self.spec.rate, seed)
            counts = {"n": len(known), "missing": len(values) - len(known)}
            if per_question:
                results[f"{key}_scores"] = [None if math.isnan(value) else value for value in values]
        if self.spec.corpus is not None:
            results[f"corpus_{self.name}"] = self.spec.corpus(predictions, references)
        return {**results, **counts}

    def _score(self, prediction: Any, references: Any, depth: int) -> float:  # noqa: ANN401 - as the features say
        if self.spec.rule is None:
            return metrics.score(self.name, prediction, references, self.config_name)
        return self.spec.rule(prediction, references, depth)


def _listed(references: Any, inputs: Inputs) -> Any:  # noqa: ANN401 - as the features say
    """Return references in their full form: a list of texts, or of groups."""
    if isinstance(references, str):
        return [references]
    if inputs == "groups" and all(isinstance(each, str) for each in references):
        return [references]
    return references


def _described(key: str, values: Sequence[float], rate: bool, seed: int) -> dict[str, float]:
    if not values:
        return {key: math.nan, f"{key}_low": math.nan, f"{key}_high": math.nan}
    low, high = metrics.wilson(sum(values), len(values)) if rate else metrics.bootstrap_mean(values, seed=seed)
    return {key: math.fsum(values) / len(values), f"{key}_low": low, f"{key}_high": high}


def load(name: str, compat: metrics.Compat = "squad", **options: Any) -> Score:  # noqa: ANN401 - of evaluate
    """Return a metric as an object of ``evaluate``; the names are those of ``SPECS``.

    ``compute`` returns the mean, the ends of its 95 % interval (``_low``, ``_high``), ``n`` and ``missing``, all scores as
    fractions; with ``per_question=True`` every score too, None where there is none.

    Args:
        name: of the metric.
        compat: whose rules count, where they differ: of em, f1, rouge_l.
        options: of ``evaluate.Metric``, as ``num_process``, ``process_id`` and ``experiment_id``; without several processes
            inputs are kept in memory.

    Raises:
        ConfigError: there is no such metric.
    """
    if name not in SPECS:
        raise ConfigError(f"no metric is called {name!r}", hint=f"take one of {', '.join(SPECS)}")
    return Score(name, compat, **{"keep_in_memory": options.get("num_process", 1) == 1, **options})
