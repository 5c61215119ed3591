"""Times of stages and costs of arms: the answers that are timed are the ones written, and sums are sums."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch

from ragtrain.config.commands.compress import CompressConfig, CompressContextConfig, CompressorConfig
from ragtrain.data import demo
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.records import CompressExample
from ragtrain.data.compress.windows import Windower
from ragtrain.errors import ConfigError
from ragtrain.evaluate.compress import cost as cost_module
from ragtrain.evaluate.compress import speed as module
from ragtrain.evaluate.compress.cost import measure_cost, sentences
from ragtrain.evaluate.compress.peak import PeakBytes
from ragtrain.evaluate.compress.speed import STAGES, measure_speed
from ragtrain.evaluate.compress.subject import Subject
from ragtrain.models.causal import positions_of
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.generate import CompressPrompt, generate, vectors_of
from ragtrain.models.flops import StackFlops, cache_bytes
from ragtrain.records import Document

NEW = 5


@pytest.fixture(scope="module")
def subject() -> Subject:
    config = CompressConfig(
        compressor=CompressorConfig(num_layers=1, num_memory_tokens=4, compression_rate=4, rates=(8,)),
        context=CompressContextConfig(max_query_tokens=6),
    )
    torch.manual_seed(0)
    model, tokenizer, other = build_compress(config, base_name=str(demo.CAUSAL))
    prompter = CompressPrompter(tokenizer, limit=positions_of(model.generator))
    return Subject(model, tokenizer, Windower(other, model.settings), prompter)


@pytest.fixture(scope="module")
def rows() -> list[CompressExample]:
    def documents(place: int) -> tuple[Document, ...]:
        return tuple(
            Document(
                f"{place}-{i}", f"Lake {place}", f"The lake of number {place} is {i} miles long. " * (1 + i + place)
            )
            for i in range(1 + place % 2)
        )

    return [
        CompressExample(str(i), f"How long is lake number {i}?", ("long",), ("long",), documents=documents(i))
        for i in range(3)
    ]


def test_what_is_timed_is_what_is_written(subject: Subject, rows: list[CompressExample]) -> None:
    """Both arms, padded batches: the tokens up to the first end are those of ``generate``."""
    timer = module._Timer(subject, NEW)
    with timer.computing("no"):
        found = {name: timer.answer(rows, name).tokens for name in timer.arms}
    for name, rate in timer.arms.items():
        prompts = []
        for row in rows:
            if rate is None:
                prompted = subject.prompter.text(row.question, row.documents, room=NEW)
                prompts.append(CompressPrompt(prompted.ids.tolist(), prompted.slots.tolist()))
                continue
            windowed = subject.windower.windows([(row.question, row.documents)])
            prompted = subject.prompter.memory(row.question, subject.windower.counts(windowed[0], rate))
            vectors = vectors_of(subject.model, [subject.windower.collate(windowed, rate)])
            prompts.append(CompressPrompt(prompted.ids.tolist(), prompted.slots.tolist(), vectors))
        answers = generate(subject.model, subject.tokenizer, prompts, max_new_tokens=NEW, batch_size=1)
        for tokens, answer in zip(found[name], answers, strict=True):
            assert len(tokens) == NEW
            kept = tokens[: answer.n_tokens - answer.ended]
            assert subject.tokenizer.decode(kept, skip_special_tokens=True).strip() == answer.text


def test_speed(subject: Subject, rows: list[CompressExample]) -> None:
    subject.model.train()
    cuts = subject.prompter.cut_rows, subject.prompter.cut_tokens
    found = measure_speed(subject, rows, repeats=3, batch_sizes=(1, 2), max_new_tokens=NEW)
    assert subject.model.training
    assert subject.model.generator.training
    subject.model.eval()
    assert (subject.prompter.cut_rows, subject.prompter.cut_tokens) == cuts
    assert found["batches"].keys() == {"1", "2"}
    assert (found["repeats"], found["new_tokens"], found["device"], found["peak_is_of"]) == (3, NEW, "cpu", "tensors")
    for size, batch in found["batches"].items():
        assert batch["arms"].keys() == {"full", "compressed", "compressed@8"}
        for arm in batch["arms"].values():
            seconds = {name: spread["all"] for name, spread in arm["seconds"].items()}
            assert all(len(times) == 3 and min(times) >= 0 for times in seconds.values())
            for i in range(3):
                assert seconds["total"][i] == pytest.approx(sum(seconds[stage][i] for stage in STAGES))
                assert seconds["first_token"][i] == pytest.approx(seconds["total"][i] - seconds["decode"][i])
                assert seconds["first_token"][i] <= seconds["natural"][i] <= seconds["total"][i] * (1 + 1e-9)
            for spread in arm["seconds"].values():
                assert spread["mean"] == pytest.approx(statistics.fmean(spread["all"]))
                assert spread["p50"] == pytest.approx(statistics.median(spread["all"]))
                assert min(spread["all"]) <= spread["p90"] <= max(spread["all"])
            assert arm["questions_per_s"] == pytest.approx(3 * int(size) / sum(seconds["total"]))
            assert arm["tokens_per_s"] == pytest.approx(NEW * arm["questions_per_s"])
            assert arm["peak_bytes"] > arm["cache_bytes"] * int(size)
        one, other = batch["arms"]["full"], batch["arms"]["compressed"]
        assert one["vectors"] == 0 < other["vectors"] < one["prompt_tokens"]
        ratio = batch["full_over_compressed"]["total"]
        pairs = zip(one["seconds"]["total"]["all"], other["seconds"]["total"]["all"], strict=True)
        assert ratio["ratio"] == pytest.approx(math.prod(a / b for a, b in pairs) ** (1 / 3))
        assert ratio["low"] <= ratio["ratio"] <= ratio["high"]


def test_cache_that_is_held_is_the_one_that_is_counted(subject: Subject, rows: list[CompressExample]) -> None:
    speed = measure_speed(subject, rows[:1], repeats=1, batch_sizes=(1,), max_new_tokens=NEW)["batches"]["1"]["arms"]
    cost = measure_cost(subject, rows[:1], max_new_tokens=NEW)
    assert speed["full"]["cache_bytes"] == cost["arms"]["full"]["cache_bytes"]
    assert speed["compressed"]["cache_bytes"] == cost["arms"]["compressed"]["cache_bytes"]
    assert speed["compressed@8"]["cache_bytes"] == cost["rates"]["8"]["cache_bytes"]
    assert speed["compressed"]["prompt_tokens"] == cost["arms"]["compressed"]["prompt_tokens"]
    assert speed["compressed"]["vectors"] == cost["arms"]["compressed"]["context_tokens"]


def test_an_arm_that_does_not_fit_is_left_out(
    subject: Subject, rows: list[CompressExample], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = module._Timer.answer

    def full_is_too_large(self: module._Timer, batch: list[CompressExample], name: str) -> module._Pass:
        if name == "full":
            raise torch.OutOfMemoryError
        return answer(self, batch, name)

    monkeypatch.setattr(module._Timer, "answer", full_is_too_large)
    with caplog.at_level("WARNING", logger="ragtrain"):
        found = measure_speed(subject, rows, repeats=1, batch_sizes=(2,), max_new_tokens=2)["batches"]["2"]
    assert found["arms"]["full"] is None
    assert found["arms"]["compressed"] is not None
    assert found["full_over_compressed"] is None
    assert "full does not fit" in caplog.text


def test_no_questions_are_refused(subject: Subject) -> None:
    with pytest.raises(ConfigError, match="no questions"):
        measure_speed(subject, [])


def test_peak_is_of_tensors_that_live_together() -> None:
    weight = torch.randn(16, 16)
    with PeakBytes(torch.device("cpu"), [weight]) as peak:
        x = torch.ones(4, 16)  # 256 bytes
        y = x @ weight.T  # 256; the view of the weight is none
        del x
        z = y.repeat(3, 1)  # 768 beside 256
        del y
        z.view(-1).add_(1)
    assert peak.bytes == 256 + 768
    assert peak.how == "tensors"


# ---- costs


def test_costs_add_up(subject: Subject, rows: list[CompressExample]) -> None:
    """Each arm against its own lengths, one by one: the question stands in every window that is read."""
    found = measure_cost(subject, rows, max_new_tokens=NEW)
    generator = StackFlops(subject.model.generator.config, head=True)
    compressor = StackFlops(subject.model.compressor.config, head=False)
    totals = []
    for row in rows:
        windowed = subject.windower.windows([(row.question, row.documents)])[0]
        read = 0
        for window in windowed.windows:
            line = subject.windower.collate([dataclasses.replace(windowed, windows=(window,), n_documents=1)])
            tokens = int(line.attention_mask.sum())
            assert tokens > len(windowed.question) + len(window.ids)
            read += compressor._count_forward(tokens)
        prompt = len(subject.prompter.memory(row.question, subject.windower.counts(windowed)).ids)
        writing = sum(generator._count_step(prompt + i) for i in range(NEW - 1))
        rank = 2 * subject.model.rank_head.weight.numel() * len(windowed.windows)
        totals.append(read + rank + generator._count_forward(prompt) + writing)
    arm = found["arms"]["compressed"]
    assert arm["flops"]["total"] == pytest.approx(statistics.fmean(totals), rel=1e-12)
    assert arm["flops"]["total"] == pytest.approx(sum(arm["flops"][part] for part in ("compress", "prefill", "decode")))
    assert found["rates"]["4"] == arm
    assert found["rates"]["8"]["flops"]["total"] < arm["flops"]["total"]
    assert (found["n"], found["question_charged_to_windows"]) == (3, True)


def test_text_within_the_budget_costs_what_memory_costs_without_its_compression(
    subject: Subject, rows: list[CompressExample]
) -> None:
    arms = measure_cost(subject, rows, max_new_tokens=NEW)["arms"]
    assert arms["full"]["full_over_this"] == 1
    assert not {"random", "shuffled"} & arms.keys()
    for name in ("truncated", "best-sentences"):
        assert 0 < arms[name]["context_tokens"] <= arms["compressed"]["context_tokens"]
        assert arms[name]["flops"]["compress"] == 0
        assert arms[name]["flops"]["total"] < arms["compressed"]["flops"]["total"]
    assert arms["none"]["context_tokens"] == 0
    assert arms["none"]["flops"]["total"] < arms["truncated"]["flops"]["total"] < arms["full"]["flops"]["total"]


def test_a_compressor_without_question_reads_less_and_can_be_stored(
    subject: Subject, rows: list[CompressExample]
) -> None:
    settings = dataclasses.replace(subject.model.settings, query_dependent=False)
    with_question = measure_cost(subject, rows, max_new_tokens=NEW)
    before = subject.model.settings
    subject.model.settings = settings
    try:
        plain = dataclasses.replace(subject, windower=Windower(subject.windower.tokenizer, settings))
        without = measure_cost(plain, rows, max_new_tokens=NEW)
    finally:
        subject.model.settings = before
    assert without["arms"]["compressed"]["compressor_tokens"] < with_question["arms"]["compressed"]["compressor_tokens"]
    assert with_question["stored"]["can_be_stored"] is False
    assert "break_even_questions" not in with_question["stored"]
    stored, memory, full = without["stored"], without["arms"]["compressed"], without["arms"]["full"]
    saved = full["flops"]["total"] - memory["flops"]["total"] + memory["flops"]["compress"]
    assert stored["break_even_questions"] == pytest.approx(memory["flops"]["compress"] / saved)
    passages = sum(len(row.documents) for row in rows)
    width = subject.model.generator.config.hidden_size
    assert stored["vector_bytes"] == pytest.approx(2 * width * 3 * memory["context_tokens"] / passages)
    assert cache_bytes(subject.model.generator.config, 0) == 0


def test_sentences_say_what_the_files_say() -> None:
    ratio = {"ratio": 1.5, "low": 1.25, "high": 1.75}
    timed = {name: {"seconds": {"total": {"mean": mean}}} for name, mean in (("full", 1.2), ("compressed", 0.8))}
    counted = {"arms": {"full": {"flops": {"total": 3e9}}, "compressed": {"flops": {"total": 2e9}}}}
    batches = {
        "1": {"arms": timed, "full_over_compressed": {"total": ratio}},
        "8": {"arms": timed, "full_over_compressed": None},
    }
    assert sentences({"cost": counted, "speed": {"batches": batches}}) == [
        "operations of a question: 2e+09 from memory, 3e+09 from full passages, 1.50 times as many",
        "single questions: 800 ms from memory, 1,200 ms from full passages, 1.50 [1.25, 1.75] times as long",
        "batches of 8 questions: one of memory and full passages does not fit on the device",
    ]
    unknown = {"arms": {"full": {"flops": None}, "compressed": {"flops": None}}}
    assert sentences({"cost": unknown}) == []


def test_a_network_that_cannot_be_counted_is_told_and_ends_nothing(
    subject: Subject, rows: list[CompressExample], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("operations of a strange model cannot be counted")

    monkeypatch.setattr(cost_module, "StackFlops", refuse)
    with caplog.at_level("WARNING", logger="ragtrain"):
        found = measure_cost(subject, rows, max_new_tokens=NEW)
    assert "strange model" in caplog.text
    assert found["arms"]["full"]["flops"] is None
    assert found["arms"]["full"]["full_over_this"] is None
    assert found["arms"]["compressed"]["cache_bytes"] > 0
