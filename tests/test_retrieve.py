"""The retriever against brute force: numpy scores, whole strings through the tokenizer, missing passages, devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertModel, PreTrainedTokenizerFast

from ragtrain.config.commands import PrepareConfig
from ragtrain.errors import DataError, IndexMismatchError, RagtrainError
from ragtrain.index.encode import IndexWriter
from ragtrain.index.fusion import fuse
from ragtrain.index.search import DenseIndex
from ragtrain.models.encoder import TextEncoder
from ragtrain.models.folders import EncoderSpec
from ragtrain.models.rag import RagModel, RagSettings
from ragtrain.prepare.beside import complete
from ragtrain.records import Passage
from ragtrain.retrieve import Retriever

if TYPE_CHECKING:
    from pathlib import Path

DIM = 16
PASSAGES = [
    Passage(f"p{i}", f"w{i} w{i + 1}" if i % 3 else "", " ".join(f"w{j}" for j in range(i, 2 * i + 3)))
    for i in range(7)
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "/", "//", *(f"w{i}" for i in range(40))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, vocabulary[token]) for token in SPECIAL],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", model_max_length=64)
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    )
    return tokenizer


def make_model(dim: int = DIM, **settings: int) -> RagModel:
    tokenizer = make_tokenizer()
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=dim, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=64, pad_token_id=1, initializer_range=0.3,
        )
    )  # fmt: skip
    encoder = TextEncoder(bert, tokenizer, EncoderSpec(name="tiny", pooling="cls", max_tokens=32))
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip
    return RagModel(encoder, bart, tokenizer, RagSettings(**settings))


def make_index(folder: Path, passages: list[Passage] = PASSAGES) -> DenseIndex:
    vectors = np.random.default_rng(0).normal(size=(len(passages), DIM)).astype(np.float16)
    with IndexWriter(folder) as writer:
        writer.write_passages(passages)
        writer.write_vectors(lambda pairs: vectors[: len(pairs)].astype(np.float32), dim=DIM)
        writer.commit(encoder={"name": "tiny"})
    return DenseIndex.open(folder)


@pytest.fixture
def index(tmp_path: Path) -> DenseIndex:
    return make_index(tmp_path / "index")


def tokens_of(*questions: str) -> list[np.ndarray]:
    return [
        np.asarray(ids)
        for ids in make_tokenizer()([f" {text}" for text in questions], add_special_tokens=False)["input_ids"]
    ]


def test_a_lookup_is_brute_force_search_and_the_tokenizer_on_whole_strings(index: DenseIndex) -> None:
    retriever = Retriever.for_model(index, make_model(n_docs=3))
    queries = torch.randn(2, DIM)
    questions = ["w30 w31 w32", "w35"]
    lookup = retriever.for_questions(tokens_of(*questions))
    retrieved = lookup(queries)

    vectors = np.asarray(index.vectors, dtype=np.float64)
    scores = queries.double().numpy() @ vectors.T
    best = np.argsort(-scores, axis=1)[:, :3]
    assert retrieved.ids.tolist() == best.tolist()
    assert lookup.hits.ids.tolist() == best.tolist()
    np.testing.assert_allclose(lookup.hits.scores.numpy(), np.take_along_axis(scores, best, 1), rtol=1e-5)
    np.testing.assert_array_equal(retrieved.vectors.numpy(), vectors[best].astype(np.float32))
    assert retrieved.mask.all()

    tokenizer = make_tokenizer()
    longest = 0
    for row in range(2):
        for rank in range(3):
            passage = PASSAGES[best[row, rank]]
            title = f"{passage.title} / " if passage.title else ""
            expected = tokenizer(f"{title}{passage.text} // {questions[row]}")["input_ids"]
            at = 3 * row + rank
            assert retrieved.input_ids[at, : len(expected)].tolist() == expected
            assert (retrieved.input_ids[at, len(expected) :] == tokenizer.pad_token_id).all()
            assert retrieved.attention_mask[at].sum() == len(expected)
            longest = max(longest, len(expected))
    assert retrieved.input_ids.shape == retrieved.attention_mask.shape == (6, longest)


def test_a_deeper_search_changes_nothing_of_what_the_generator_gets(index: DenseIndex) -> None:
    retriever = Retriever.for_model(index, make_model(n_docs=4))
    queries, questions = torch.randn(3, DIM), tokens_of("w1", "w2 w3", "w4")
    shallow, deep = retriever.for_questions(questions, n_docs=2), retriever.for_questions(questions, n_docs=2, depth=6)
    one, other = shallow(queries), deep(queries)
    for field in ("vectors", "mask", "ids", "input_ids", "attention_mask"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert shallow.hits.ids.shape == (3, 2)
    assert deep.hits.ids.shape == (3, 6)
    assert torch.equal(deep.hits.ids[:, :2], one.ids)
    # A depth below n_docs is n_docs; without numbers, the retriever's own count.
    assert retriever.for_questions(questions, n_docs=3, depth=1)(queries).ids.shape == (3, 3)
    assert retriever.for_questions(questions)(queries).ids.shape == (3, 4)


def test_places_without_a_passage_are_masked_and_keep_their_shape(tmp_path: Path) -> None:
    retriever = Retriever.for_model(make_index(tmp_path / "two", PASSAGES[:2]), make_model(n_docs=4))
    lookup = retriever.for_questions(tokens_of("w30 w31"))
    retrieved = lookup(torch.randn(1, DIM))
    assert retrieved.mask.tolist() == [[True, True, False, False]]
    assert retrieved.ids[0, 2:].tolist() == [-1, -1]
    assert (retrieved.vectors[0, 2:] == 0).all()
    assert torch.isfinite(retrieved.vectors).all()
    assert retrieved.input_ids.shape[0] == 4
    assert (retrieved.attention_mask.sum(1) > 0).all()
    assert [passage.id for passage in retriever.passages(lookup.hits, 0)] == [
        PASSAGES[place].id for place in retrieved.ids[0, :2].tolist()
    ]


def test_no_gradient_flows_through_the_search_and_half_precision_queries_are_taken(index: DenseIndex) -> None:
    retriever = Retriever.for_model(index, make_model(n_docs=2))
    queries = torch.randn(1, DIM, requires_grad=True)
    retrieved = retriever.for_questions(tokens_of("w1"))(queries)
    assert not retrieved.vectors.requires_grad
    half = retriever.search(queries.detach().bfloat16())
    assert half.scores.dtype == torch.float32
    assert half.ids.shape == (1, 2)


def test_only_the_passage_is_cut_to_the_input_length(index: DenseIndex) -> None:
    retriever = Retriever.for_model(index, make_model(n_docs=7, max_input_tokens=9))
    question = "w30 w31 w32 w33"
    retrieved = retriever.for_questions(tokens_of(question))(torch.randn(1, DIM))
    assert retrieved.input_ids.shape[1] <= 9
    kept = make_tokenizer()(f"// {question}")["input_ids"][1:]
    for row, mask in zip(retrieved.input_ids, retrieved.attention_mask, strict=True):
        assert row[mask.bool()].tolist()[-len(kept) :] == kept


def test_an_index_of_another_dimension_is_refused(index: DenseIndex) -> None:
    with pytest.raises(IndexMismatchError, match="16 dimensions, those of the question encoder 8"):
        Retriever.for_model(index, make_model(dim=8))


@pytest.fixture
def everything(tmp_path: Path) -> DenseIndex:
    """The index with words and a faiss file."""
    pytest.importorskip("faiss", reason="the extra [cpu] is not installed")
    path = make_index(tmp_path / "everything").path
    complete(PrepareConfig(bm25=True, index_type="hnsw"), path)
    return DenseIndex.open(path)


@pytest.mark.parametrize("search_index", ["flat", "faiss"])
@pytest.mark.parametrize("retrieval", ["dense", "bm25", "hybrid"])
def test_whatever_chooses_scores_are_inner_products(everything: DenseIndex, retrieval: str, search_index: str) -> None:
    model = make_model(n_docs=3)
    retriever = Retriever.for_model(everything, model, retrieval=retrieval, search_index=search_index)
    queries, questions = torch.randn(2, DIM), ["w7 w8", "w4 w5"]
    lookup = retriever.for_questions(tokens_of(*questions), texts=questions)
    retrieved = lookup(queries)
    vectors = np.asarray(everything.vectors, dtype=np.float64)
    scores = queries.double().numpy() @ vectors.T
    ids = retrieved.ids.numpy()
    np.testing.assert_allclose(lookup.hits.scores.numpy(), np.take_along_axis(scores, ids, 1), rtol=1e-5)
    np.testing.assert_array_equal(retrieved.vectors.numpy(), vectors[ids].astype(np.float32))
    dense = np.argsort(-scores, axis=1)[:, :7]
    words = everything.words().search(questions, 7)
    expected = {"dense": dense, "bm25": words, "hybrid": fuse([dense, words], 3)}[retrieval]
    assert ids.tolist() == expected[:, :3].tolist()


def test_words_need_the_questions_and_a_bm25_index(everything: DenseIndex, index: DenseIndex) -> None:
    model = make_model(n_docs=3)
    retriever = Retriever.for_model(everything, model, retrieval="hybrid")
    with pytest.raises(RagtrainError, match="needs the text of each of 1 questions"):
        retriever.for_questions(tokens_of("w1"))(torch.randn(1, DIM))
    with pytest.raises(DataError, match="no BM25 index"):
        Retriever.for_model(index, model, retrieval="bm25")
    with pytest.raises(DataError, match="no faiss file"):
        Retriever.for_model(index, model, search_index="faiss")


def test_vectors_come_from_what_the_searcher_holds_now(index: DenseIndex) -> None:
    retriever = Retriever.for_model(index, make_model(n_docs=3))
    fresh = np.random.default_rng(9).normal(size=(len(PASSAGES), DIM)).astype(np.float32)
    retriever.searcher.replace(fresh)
    queries = torch.randn(2, DIM)
    retrieved = retriever.for_questions(tokens_of("w1", "w2"))(queries)
    best = np.argsort(-(queries.double().numpy() @ fresh.astype(np.float16).astype(np.float64).T), axis=1)[:, :3]
    assert retrieved.ids.tolist() == best.tolist()
    np.testing.assert_allclose(retrieved.vectors.numpy(), fresh[best], rtol=1e-3, atol=1e-3)


def test_hits_are_there_only_after_a_search(index: DenseIndex) -> None:
    lookup = Retriever.for_model(index, make_model()).for_questions(tokens_of("w1"))
    with pytest.raises(RagtrainError, match="nothing was searched"):
        _ = lookup.hits
