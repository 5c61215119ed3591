"""What is exported is loaded by transformers' own class, and finds what our search finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import BartConfig, DPRConfig, RagConfig, RagRetriever

from ragtrain.config.commands import PrepareConfig
from ragtrain.errors import ConfigError
from ragtrain.index.search import DenseIndex
from ragtrain.prepare import export, run

if TYPE_CHECKING:
    from pathlib import Path

faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")


def retriever(folder: Path, dim: int) -> RagRetriever:
    config = RagConfig.from_question_encoder_generator_configs(
        DPRConfig(hidden_size=dim, num_attention_heads=2, projection_dim=0), BartConfig(), index_name="custom",
        passages_path=str(folder / "hf_dataset"), index_path=str(folder / "hf_dataset_index.faiss"),
        retrieval_vector_size=dim, n_docs=3,
    )  # fmt: skip
    loaded = RagRetriever(config, question_encoder_tokenizer=None, generator_tokenizer=None)
    loaded.init_retrieval()
    return loaded


@pytest.mark.reference
@pytest.mark.parametrize("shard", [export.SHARD, 1])
def test_transformers_loads_it_and_finds_the_same(
    foreign, vectors, passages, tmp_path: Path, shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD", shard)
    monkeypatch.setattr(export, "BATCH", 64)
    out = tmp_path / "hf"
    result = run(PrepareConfig(index_path=foreign(), verify_samples=8, export_hf=out, device="cpu"))
    index = DenseIndex.open(result.path)
    assert len(list((out / "hf_dataset").glob("*.arrow"))) == (1 if shard > 1 else 4)
    questions = vectors[::17] + np.random.default_rng(0).standard_normal((len(vectors[::17]), index.dim))
    questions = questions.astype(np.float32)
    found, ids, documents = retriever(out, index.dim).retrieve(questions, n_docs=3)
    ours = index.searcher().search(torch.from_numpy(questions), 3)
    assert ids.tolist() == ours.ids.tolist()
    np.testing.assert_array_equal(found, index.searcher().vectors(ours.ids).numpy())
    for row, document in enumerate(documents):
        assert document["title"] == [passages[i].title for i in ids[row]]
        assert document["text"] == [passages[i].text for i in ids[row]]


def test_an_export_is_made_once_and_replaced_only_where_asked(foreign, vectors, tmp_path: Path, caplog) -> None:
    out, folder = tmp_path / "hf", foreign()
    run(PrepareConfig(index_path=folder, verify_samples=8, export_hf=out, device="cpu"))
    before = (out / "hf_dataset_index.faiss").stat().st_mtime_ns
    run(PrepareConfig(index_path=folder, export_hf=out, device="cpu"))
    assert (out / "hf_dataset_index.faiss").stat().st_mtime_ns == before
    other = foreign("other", rows=vectors * 1.01)
    with pytest.raises(ConfigError, match="holds another export"):
        run(PrepareConfig(index_path=other, verify_samples=8, export_hf=out, device="cpu"))
    run(PrepareConfig(index_path=other, verify_samples=8, export_hf=out, device="cpu", overwrite=True))
    assert (out / "hf_dataset_index.faiss").stat().st_mtime_ns != before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
