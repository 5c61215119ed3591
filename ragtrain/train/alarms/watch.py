"""Looks at every step and every window, compares with what is known, and tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from ragtrain.train.alarms import known
from ragtrain.train.alarms.known import Alarm
from ragtrain.train.alarms.loss import LossWatch
from ragtrain.train.alarms.window import Collector, Seen, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ragtrain import loop
    from ragtrain.config.commands import RagConfig
    from ragtrain.runs import RunFolder


class Watch(LossWatch):
    """Looks at every micro-batch and every step of joint training, and says when one of the alarms is due."""

    def __init__(self, run: RunFolder, config: RagConfig) -> None:
        """Watch a run; alarms go to its ``alarms.jsonl``."""
        super().__init__(run, config.run)
        self._config = config
        self._beginning: dict[str, float] = {}  # the first window's figures that later ones are compared with
        self._collector = Collector(config.model.max_question_tokens)
        self._examples = 0.0  # of a process, since the last window

    def saw(
        self, ids: Tensor, mask: Tensor, queries: Tensor, prior: Tensor, posterior: Tensor, *,
        question_mask: Tensor | None = None, target_tokens: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Take note of a micro-batch of training; nothing waits for the device.

        Args:
            ids: (batch, n_docs) positions in the index, -1 where ``mask`` is False.
            mask: (batch, n_docs) bool.
            queries: (batch, dim) question vectors.
            prior: (batch, n_docs) p(z|q), 0 where there is no passage.
            posterior: (batch, n_docs) p(z|q,y), likewise.
            question_mask: (batch, question tokens), what the question encoder reads.
            target_tokens: (batch,) tokens of each target that are predicted.
        """
        self._collector.add(Seen(ids, mask, queries, prior, posterior, question_mask, target_tokens))

    def _seen(self, step: loop.Step) -> list[Alarm]:
        alarms = list(self._of_step(step))
        self._examples += step.examples / self._world  # the same everywhere, unlike what a process saw itself
        full = self._examples >= known.WINDOW_QUESTIONS
        if step.is_last or (full and step.index % self._config.loop.logging_steps == 0):
            mine = list(self._of_window(step, self._collector.take(), full=full))
            everywhere: list[Alarm] = gather_object(mine) if self._world > 1 else mine
            alarms += {alarm.name: alarm for alarm in reversed(everywhere)}.values()
            self._examples = 0.0
        return alarms

    # ---- what is looked at

    def _of_step(self, step: loop.Step) -> Iterator[Alarm]:
        """Gradients and loss: the same on every process."""
        for name in known.RETRIEVER_GROUPS:
            if step.learning_rates.get(name, 0.0) == 0.0:  # not trained, or not yet
                continue
            norm, steps = step.group_grad_norms[name], known.ZERO_GRADIENT_STEPS
            trouble = self._trouble(f"zero-gradient of {name}", steps, known.QUIET_STEPS)
            if trouble.is_due(norm < known.ZERO_GRADIENT):
                message = f"the {name} is trained and has had a gradient norm of {norm:.3g} for {steps} steps"
                yield Alarm("zero-gradient", step.index, message, {"grad_norm": norm})
        yield from self._of_loss(step)

    def _of_window(self, step: loop.Step, window: Window | None, *, full: bool) -> Iterator[Alarm]:
        """What this process saw of retrieval and of its data."""
        if window is None:
            return
        learns = any(step.learning_rates.get(name, 0.0) > 0.0 for name in known.RETRIEVER_GROUPS)
        if full:
            yield from self._of_retrieval(step.index, window, learns=learns)
        share = window.missing
        if self._trouble("missing-passages").is_due(share > known.MISSING_SHARE):
            message = f"{share:.1%} of the places for passages are empty: the search found fewer than {window.n_docs}"
            yield Alarm("missing-passages", step.index, message, {"share": share})
        if self._trouble("empty-targets").is_due(window.empty > 0):
            message = f"{window.empty} of {window.questions} targets have no token to predict"
            yield Alarm("empty-targets", step.index, message, {"questions": window.empty, "of": window.questions})
        if self._trouble("cut-questions").is_due(window.long > known.CUT_SHARE * window.questions):
            message = (
                f"{window.long} of {window.questions} questions fill the question encoder's "
                f"{self._config.model.max_question_tokens} tokens: their ends are cut"
            )
            yield Alarm("cut-questions", step.index, message, {"questions": window.long, "of": window.questions})
        if self._trouble("cut-generator-questions").is_due(window.cut > known.CUT_SHARE * window.inputs):
            message = (
                f"{window.cut} of {window.inputs} generator inputs hold a question that is longer than "
                f"{self._config.model.max_input_tokens} tokens by itself"
            )
            yield Alarm("cut-generator-questions", step.index, message, {"inputs": window.cut, "of": window.inputs})

    def _of_retrieval(self, step: int, window: Window, *, learns: bool) -> Iterator[Alarm]:
        """Compare with the first full window, and posterior with prior."""
        now = {"distinct": window.distinct, "spread": window.spread}
        begin = self._beginning or now
        self._beginning = begin
        figures = {**now, **{f"{name}_at_first": value for name, value in begin.items()}}
        if self._trouble("retrieval-collapse").is_due(window.distinct < known.COLLAPSE_SHARE * begin["distinct"]):
            message = (
                f"{window.distinct:.1%} of the passages retrieved are different ones, at first it was "
                f"{begin['distinct']:.1%}: most questions get the same passages"
            )
            yield Alarm("retrieval-collapse", step, message, figures)
        if self._trouble("query-collapse").is_due(window.spread < known.QUERY_SHARE * begin["spread"]):
            message = (
                f"the variance of question vectors is {window.spread:.2%} of their mean squared length, at first it was "
                f"{begin['spread']:.2%}: all questions look alike"
            )
            yield Alarm("query-collapse", step, message, figures)
        told = learns and window.n_docs > 1
        differ = (
            f"posterior and prior over passages differ by {window.kl:.2g} nats (KL), {known.KL_WINDOWS} windows long"
        )
        if self._trouble("untaught-retriever", known.KL_WINDOWS).is_due(told and window.kl < known.UNTAUGHT_KL):
            message = f"{differ}: the retriever is told next to nothing"
            yield Alarm("untaught-retriever", step, message, {"kl": window.kl})
        if self._trouble("contradicted-retriever", known.KL_WINDOWS).is_due(told and window.kl > known.CONTRADICTED_KL):
            message = f"{differ}: the retriever is sure of passages that the answers speak against, and stays so"
            yield Alarm("contradicted-retriever", step, message, {"kl": window.kl})

    def _begin(self, first_step: int) -> list[dict[str, Any]]:
        """Before the first step: a collapse knows what there was before it."""
        earlier = super()._begin(first_step)
        for row in earlier:
            figures = {name: value for name, value in row["figures"].items() if name.endswith("_at_first")}
            self._beginning = {
                name.removesuffix("_at_first"): value for name, value in figures.items()
            } or self._beginning
        return earlier
