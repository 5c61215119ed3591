"""Stored vectors are the computed ones to their measured error; a stopped command goes on; what cannot be is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ragtrain import prepare
from ragtrain.cli.app import main
from ragtrain.config.commands import PrepareConfig, StoreConfig
from ragtrain.data.compress.records import Windowed, passage_text
from ragtrain.data.compress.windows import Windower
from ragtrain.errors import ConfigError, DataError, IndexMismatchError, Interrupted, NumericsError
from ragtrain.models.compress.export import load_compress
from ragtrain.models.compress.generate import vectors_of
from ragtrain.prepare import memory
from ragtrain.prepare.memory import MemoryStore
from ragtrain.prepare.memory.cost import break_even
from ragtrain.prepare.memory.encode import Compressor
from ragtrain.prepare.memory.shards import Error, coded
from ragtrain.records import Document, Passage


@pytest.fixture
def config(compressor: Path, corpus: Path, tmp_path: Path) -> StoreConfig:
    return StoreConfig(
        model_dir=str(compressor), passages=corpus, output_dir=tmp_path / "memory", shard_size=6, batch_size=5,
        device="cpu",
    )  # fmt: skip


def passages_of(corpus: Path) -> list[Passage]:
    return [Passage(**json.loads(line)) for line in corpus.read_text().splitlines()]


def computed(run: Path, passages: list[Passage], rate: int | None = None) -> list[np.ndarray]:
    """Return the vectors of passages, one passage at a time, by the whole model."""
    model, tokenizers, _ = load_compress(run)
    windower = Windower(tokenizers.compressor, model.settings)
    found = []
    for passage in passages:
        rows = windower.windows([("a question", [Document(passage.id, passage.title, passage.text)])])
        found.append(vectors_of(model, [windower.collate(rows, rate)]).numpy())
    return found


@pytest.mark.parametrize(("storage", "rate"), [("float16", None), ("int8", 4)])
def test_stored_vectors_are_the_computed_ones(config: StoreConfig, corpus: Path, storage: str, rate: int | None):
    result = memory.run(config.model_copy(update={"storage": storage, "compression_rate": rate}))
    passages = passages_of(corpus)
    expected = computed(Path(str(config.model_dir)), passages, rate)
    store = MemoryStore(config.output_dir)
    ids = [passage.id for passage in passages]
    found = store.vectors(ids)
    error = result.manifest["error"]
    assert [len(each) for each in found] == [len(each) for each in expected] == store.counts(range(len(store)))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        relative = np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)
        assert (relative <= error["worst_relative"] + 1e-5).all()
    assert error["worst_relative"] < (1e-3 if storage == "float16" else 5e-2)
    assert error["mean_cosine"] > 0.999
    long = ids.index("long")
    assert store.counts([long])[0] > store.counts([0])[0]
    assert [list(each) for each in store.vectors(["short", ids[0]])[0][:1]] == [list(found[ids.index("short")][0])]
    assert [passage.id for passage in store.passages] == ids
    model, tokenizers, _ = load_compress(str(config.model_dir))
    texts = [passage_text(Document(p.id, p.title, p.text)) for p in passages]
    lengths = [len(tokenizers.compressor(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert store.tokens(range(len(store))) == lengths
    assert result.manifest["tokens"]["tokens"] == sum(lengths)
    assert result.manifest["tokens"]["cut"] == 0
    assert model.settings.rates == (4,)


@pytest.mark.parametrize("kind", ["modernbert", "small_lm"])
def test_other_compressors(config: StoreConfig, corpus: Path, make, kind: str):
    run = make(kind)
    memory.run(config.model_copy(update={"model_dir": str(run)}))
    passages = passages_of(corpus)
    found = MemoryStore(config.output_dir).vectors([passage.id for passage in passages])
    for one, other in zip(found, computed(run, passages), strict=True):
        assert np.abs(one - other).max() <= 1e-3 * max(1.0, np.abs(other).max())


def test_an_index_gives_passages_and_positions(config: StoreConfig, corpus: Path, tmp_path: Path):
    index = tmp_path / "index"
    prepare.run(PrepareConfig(passages=corpus, output_dir=index, passage_words=40, device="cpu"))
    result = memory.run(config.model_copy(update={"passages": None, "index": index}))
    store = MemoryStore(config.output_dir)
    assert len(store) == result.manifest["count"] == len(store.passages) > len(passages_of(corpus))
    pieces = list(store.passages)
    assert "long#1" in store
    assert "long" not in store
    near = [store.at([place])[0] for place in range(len(store))]
    for one, other in zip(near, store.vectors([piece.id for piece in pieces]), strict=True):
        assert (one == other).all()
    assert not (config.output_dir / "passages.jsonl").exists()


@pytest.mark.parametrize("shards", [3])
def test_a_stopped_command_goes_on_with_the_shard_that_is_missing(
    config: StoreConfig, shards: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    whole = config.model_copy(update={"output_dir": tmp_path / "whole"})
    memory.run(whole)
    write, written = memory.write_shard, []

    def stopping(path: Path, *rest: object) -> dict:
        if len(written) == shards:
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "write_shard", stopping)
        with pytest.raises(Interrupted, match=f"{shards} finished shards"):
            memory.run(config)
    with pytest.raises(DataError, match="not finished"):
        MemoryStore(config.output_dir)
    with pytest.raises(ConfigError, match="another request"):
        memory.run(config.model_copy(update={"storage": "int8"}))
    # As kill -9 leaves it: a line that breaks off, a file that was not renamed.
    with (config.output_dir / "shards.jsonl").open("a") as file:
        file.write('{"key": "shard 1", "si')
    (config.output_dir / ".shard-00002.safetensors.tmp-1").write_bytes(b"half")
    monkeypatch.setattr(memory, "write_shard", lambda path, *rest: (written.append(path.name), write(path, *rest))[1])
    memory.run(config)
    assert written == [f"shard-{number:05d}.safetensors" for number in range(4)]
    one, other = MemoryStore(config.output_dir), MemoryStore(whole.output_dir)
    for a, b in zip(one.at(range(len(one))), other.at(range(len(other))), strict=True):
        assert (a == b).all()
    assert one.manifest["error"] == other.manifest["error"]


def test_the_same_request_has_nothing_to_do(config: StoreConfig, monkeypatch: pytest.MonkeyPatch):
    assert not memory.run(config).up_to_date
    monkeypatch.setattr(memory, "Compressor", lambda *_: pytest.fail("a model was loaded"))
    assert memory.run(config).up_to_date
    monkeypatch.undo()
    assert not memory.run(config.model_copy(update={"storage": "int8", "overwrite": True})).up_to_date
    assert MemoryStore(config.output_dir).manifest["storage"] == "int8"


def test_figures_say_when_vectors_have_paid(config: StoreConfig, corpus: Path):
    cost = memory.run(config).manifest["cost"]
    passages = passages_of(corpus)
    texts = [passage_text(Document(p.id, p.title, p.text)) for p in passages]
    size = sum(path.stat().st_size for path in config.output_dir.glob("shard-*.safetensors"))
    assert cost["text_bytes"] == pytest.approx(sum(len(text.encode()) for text in texts) / len(texts))
    assert cost["vector_bytes"] == size / len(texts)
    assert cost["times_text"] == pytest.approx(cost["vector_bytes"] / cost["text_bytes"])
    assert cost["saved_flops"] == pytest.approx(cost["text_flops"] - cost["memory_flops"])
    assert cost["saved_flops"] > 0
    assert cost["break_even_uses"] == pytest.approx(cost["compress_flops"] / cost["saved_flops"])
    assert cost["memory_cache_bytes"] < cost["text_cache_bytes"]


def test_operations_are_those_that_are_computed(compressor: Path, corpus: Path):
    made = Compressor(compressor, 8, torch.device("cpu"))
    passages = passages_of(corpus)
    made.model.compressor.set_attn_implementation("eager")  # of the CPU's own kernel, torch counts nothing
    rows, _ = made.windowed(passages)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for row in rows:
            for window in row.windows:  # together, they are padded
                made.model.compress(made.windower.collate([Windowed(row.question, (window,), 1)], 8))
    figures = break_even(made, passages, 1.0)
    assert figures["compress_flops"] * len(passages) == pytest.approx(counter.get_total_flops())


def test_a_question_dependent_run_is_refused(config: StoreConfig, make):
    run = make(query_dependent=True)
    with pytest.raises(ConfigError, match="cannot be stored") as refused:
        memory.run(config.model_copy(update={"model_dir": str(run)}))
    assert "--no-query-dependent" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"model_dir": None}, ConfigError, "no compressor"),
        ({"compression_rate": 5}, ConfigError, "trained for 8, 4"),
        ({"index": Path("x")}, ConfigError, "both given"),
    ],
)
def test_what_cannot_be_is_refused(config: StoreConfig, fields: dict, error: type, match: str):
    with pytest.raises(error, match=match):
        memory.run(config.model_copy(update=fields))


def test_a_folder_of_something_else_is_left_alone(config: StoreConfig):
    config.output_dir.mkdir()
    (config.output_dir / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="left alone"):
        memory.run(config.model_copy(update={"overwrite": True}))


def test_a_store_knows_what_it_is_of(config: StoreConfig, corpus: Path, make):
    assert main(["index", "compress", "--model-dir", str(config.model_dir), "--passages", str(corpus), "--output-dir",
                 str(config.output_dir), "--device", "cpu"]) == 0  # fmt: skip
    store = MemoryStore(config.output_dir)
    store.check_model(str(config.model_dir))
    with pytest.raises(IndexMismatchError, match="another compressor"):
        store.check_model(make(num_layers=2))
    with pytest.raises(DataError, match="no vectors of a passage 'nobody'"):
        store.vectors(["nobody"])
    with pytest.raises(IndexError):
        store.at([len(store)])
    other = pickle.loads(pickle.dumps(store))
    assert (other.at([3])[0] == store.at([3])[0]).all()
    shard = config.output_dir / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="cut"):
        MemoryStore(config.output_dir)


def test_rounding():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(50, 33)).astype(np.float32) * draw.lognormal(size=(50, 1)).astype(np.float32)
    vectors[7] = 0
    for storage, worst in (("float16", 2**-11), ("int8", 0.02)):
        stored = coded(vectors, storage)
        error = Error.of(vectors, stored.decoded())
        assert error.to_json()["worst_relative"] <= worst
        assert (stored.decoded()[7] == 0).all()
    steps = np.abs(vectors).max(axis=1) / 127
    assert (np.abs(coded(vectors, "int8").decoded() - vectors) <= steps[:, None] / 2 * 1.001).all()
    large = vectors * 1e5
    with pytest.raises(NumericsError, match="float16"):
        coded(large, "float16")
    assert Error.of(large, coded(large, "int8").decoded()).to_json()["worst_relative"] <= 0.02
    large[0, 0] = np.nan
    with pytest.raises(NumericsError, match="not finite"):
        coded(large, "int8")
