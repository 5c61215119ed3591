from __future__ import annotations

from typing import Any

import pytest

from ragtrain.config.compression import CompressSettings
from ragtrain.data.compress.pretraining import PretrainSource, passages_of
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.windows import Windower

TEXTS = [
    "The lake is deep. It lies in the hills of Peru and was found in 1911 by Ann. It has many fish in it.",
    "Oslo is the capital of Norway. " * 20,
    "Short.",
    "Helium is a gas with symbol He and number 2, and it is found in the sun.",
]


@pytest.fixture
def make(causal: Any, encoder: Any) -> Any:
    def source(share: float, kind: str = "n_layers") -> PretrainSource:
        settings = CompressSettings(compressor_type=kind, num_memory_tokens=4, compression_rate=6, rates=(3,))
        windower = Windower(encoder if kind == "modernbert" else causal, settings)
        return PretrainSource(
            TEXTS, windower, CompressPrompter(causal), batch_size=4, seed=0, reconstruction_share=share
        )

    return source


def parts(source: PretrainSource, batch: Any) -> list[tuple[str, int, str]]:
    """What each row's window says, its task, and what is learnt, end token aside."""
    compressor, generator = source.windower.tokenizer, source.prompter.tokenizer
    found = []
    for i in range(len(batch.ids)):
        text = (batch.windows.place[i] == -1) & (batch.windows.attention_mask[i] == 1)
        window = compressor.decode(batch.windows.input_ids[i][text], skip_special_tokens=True)
        tasks = batch.slot[i][batch.slot[i] < -1].tolist()
        learnt = generator.decode(batch.labels[i][batch.labels[i] >= 0], skip_special_tokens=True)
        assert len(tasks) == 1
        found.append((window.strip(), tasks[0], learnt.strip()))
    return found


@pytest.mark.parametrize("kind", ["n_layers", "modernbert"])
def test_a_window_is_said_again(make: Any, kind: str) -> None:
    source = make(1.0, kind)
    for indices in source.plan(0):
        for window, task, learnt in parts(source, source.collate(indices, 0)):
            assert task == -2
            assert learnt.lower().replace(" ", "") == window.lower().replace(" ", "")


def test_the_text_goes_on_where_the_window_ends(make: Any) -> None:
    source = make(0.0)
    eos = source.prompter.tokenizer.eos_token_id
    seen: set[str] = set()
    for epoch in range(4):
        for indices in source.plan(epoch):
            batch = source.collate(indices, epoch)
            for i, (window, task, learnt) in enumerate(parts(source, batch)):
                text = TEXTS[int(batch.ids[i].split("-")[0])]
                if task == -2:
                    assert text == "Short."  # too short to be cut in two
                    continue
                seen.add(text)
                ends = [
                    at for at in range(len(text)) if text.startswith(learnt, at) and text[:at].rstrip().endswith(window)
                ]
                assert ends, (window, learnt)
                stops = batch.labels[i][batch.labels[i] >= 0].tolist()[-1] == eos
                assert stops == any(not text[at + len(learnt) :].strip() for at in ends)
    assert seen == {TEXTS[0], TEXTS[1], TEXTS[3]}


def test_both_tasks_both_rates_and_the_same_each_time(make: Any) -> None:
    source, again = make(0.5), make(0.5)
    assert len(source) > len(TEXTS)  # a long passage gives several samples
    tasks, rates, windows = set(), set(), set()
    for epoch in range(6):
        assert sorted(i for batch in source.plan(epoch) for i in batch) == list(range(len(source)))
        for indices in source.plan(epoch):
            batch = source.collate(indices, epoch)
            same = again.collate(indices, epoch)
            assert batch.input_ids.tolist() == same.input_ids.tolist()
            assert batch.windows.input_ids.tolist() == same.windows.input_ids.tolist()
            halves = [source.collate([i], epoch) for i in indices]
            assert {half.windows.rate for half in halves} == {batch.windows.rate}
            assert sum(half.weight for half in halves) == batch.weight
            tasks |= {task for _, task, _ in parts(source, batch)}
            windows |= {window for window, _, _ in parts(source, batch)}
            rates.add(batch.windows.rate)
    assert tasks == {-2, -3}
    assert rates == {6, 3}
    assert len(windows) >= 8


def test_passages_are_taken_once(row: Any) -> None:
    rows = [row("a", 2), row("b", 1), row("a", 2)]
    texts = passages_of(rows)
    assert len(texts) == 3
    assert texts[0].startswith("Title 0\nPassage 0 of a says")
