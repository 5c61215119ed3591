"""What a run leaves behind is what it was, bit for bit, and nothing of the base."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import nn
from transformers import AutoModel, AutoTokenizer

from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.models import weights
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import Tokenizers, is_compress, load_compress, save_compress
from ragtrain.models.compress.generate import memories

ABOUT = {"prompts": {"instruction": "briefly"}}
ROWS = ((5, 30), (1,), (12, 7, 26))


def disturb(model: nn.Module) -> None:
    """Let every trained weight be what no construction would give."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    ("kind", "compressor"),
    [*((kind, "n_layers") for kind in ("llama", "qwen3", "gemma3", "gpt2", "opt")), ("llama", "modernbert"),
     ("llama", "small_lm")],
)  # fmt: skip
def test_it_comes_back_bit_for_bit(kind: str, compressor: str, make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model(kind, compressor, rates=(2,))
    disturb(made.model)
    run = tmp_path / "run"
    save_compress(made.model, made.tokenizers, run / "final_model", sidecar=ABOUT)
    again, tokenizers, sidecar = load_compress(run)
    one, other = made.model.state_dict(), again.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    batch = made.batch(*ROWS)
    with torch.no_grad():
        expected, found = made.model(batch), again(batch)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.memory.vectors, expected.memory.vectors)
    assert torch.equal(found.memory.scores, expected.memory.scores)
    assert not again.training
    assert again.settings == made.model.settings
    assert tokenizers.generator.get_vocab() == made.tokenizers.generator.get_vocab()
    assert sidecar["kind"] == "compress"
    assert sidecar["prompts"] == ABOUT["prompts"]
    assert sidecar["base"] == str(make.folders[kind])
    # And once more: what was read can be written.
    save_compress(again, tokenizers, tmp_path / "again", sidecar=sidecar)
    for file in ("heads.safetensors", "compressor/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (run / "final_model" / file).read_bytes()


def test_only_what_was_trained_is_in_it(make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model()
    folder = save_compress(made.model, made.tokenizers, tmp_path / "out", sidecar=ABOUT)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {file for file in files if not file.endswith((".json", ".md"))} == {
        "compressor/model.safetensors", "heads.safetensors", "adapter/adapter_model.safetensors",
    }  # fmt: skip
    stored = sum((folder / file).stat().st_size for file in files if file.endswith(".safetensors"))
    trained = sum(parameter.numel() * 4 for parameter in made.model.parameters() if parameter.requires_grad)
    assert trained <= stored < trained + 20_000  # names and shapes
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "Rates: 4x" in (folder / "README.md").read_text()
    assert is_compress(folder)
    assert not is_compress(make.folders["llama"])
    assert not is_compress("owner/name")


def test_others_can_read_the_parts(make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model(compressor="modernbert")
    folder = save_compress(made.model, made.tokenizers, tmp_path / "out", sidecar=ABOUT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that transformers is about to change
        generator = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    ids = torch.randint(8, 58, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(generator(ids).logits, made.model.generator(ids).logits)
        encoder = AutoModel.from_pretrained(folder / "compressor")
        torch.testing.assert_close(encoder(ids).last_hidden_state, made.model.compressor(ids).last_hidden_state)
    assert len(AutoTokenizer.from_pretrained(folder / "adapter")) == len(made.tokenizers.generator)


def test_a_generator_trained_as_a_whole_is_in_it(make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model(lora={"lora_rank": 0})
    disturb(made.model)
    folder = save_compress(made.model, made.tokenizers, tmp_path / "out", sidecar=ABOUT)
    again, _, sidecar = load_compress(folder)
    assert not sidecar["network"]["adapter"]
    one, other = made.model.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_base_keeps_its_type(make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model(model={"dtype": "bfloat16"})
    folder = save_compress(made.model, made.tokenizers, tmp_path / "out", sidecar=ABOUT)
    again, _, _ = load_compress(folder, "cpu")
    assert {name: p.dtype for name, p in again.named_parameters()} == {
        name: p.dtype for name, p in made.model.named_parameters()
    }
    batch = made.batch(*ROWS)
    with torch.no_grad():
        assert torch.equal(again(batch).logits, made.model(batch).logits)


def test_a_compressor_with_its_own_tokenizer(make: SimpleNamespace, causal: SimpleNamespace, tmp_path: Path) -> None:
    own = tmp_path / "bert"
    shutil.copytree(make.config(compressor="modernbert").compressor.compressor_model, own)
    tokenizer = causal.tokenizer(pad=True)
    tokenizer.add_tokens([])
    tokenizer.init_kwargs["model_max_length"] = 77
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(own)
    made = make.model(compressor="modernbert", compressor_model=str(own))
    assert made.tokenizers.compressor.model_max_length == 77
    folder = save_compress(made.model, made.tokenizers, tmp_path / "out", sidecar=ABOUT)
    _, tokenizers, _ = load_compress(folder)
    assert tokenizers.compressor.model_max_length == 77
    assert tokenizers.generator.model_max_length != 77


def test_a_checkpoint_of_the_run(make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model()
    folder = tmp_path / "run" / "checkpoints" / "step-000004"
    folder.mkdir(parents=True)
    batch = made.batch(*ROWS)
    with torch.no_grad():
        expected = made.model(batch).logits
    weights.save_weights(made.model, folder)
    disturb(made.model)
    save_compress(made.model, made.tokenizers, tmp_path / "run" / "final_model", sidecar=ABOUT)
    (tmp_path / "run" / "checkpoints" / "best").symlink_to("step-000004")
    for name in (folder, folder.with_name("best")):
        again, _, _ = load_compress(name)
        with torch.no_grad():
            assert torch.equal(again(batch).logits, expected)
    other = make.model("qwen3")
    weights.save_weights(other.model, folder)
    with pytest.raises(CheckpointError):
        load_compress(tmp_path / "run", checkpoint=folder)


def test_training_goes_on_from_a_run(make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model(rates=(2,))
    disturb(made.model)
    save_compress(made.model, made.tokenizers, tmp_path / "run" / "final_model", sidecar=ABOUT)
    config = make.config(rates=(2, 6), model={"model_name_or_path": str(tmp_path / "run")})
    assert not make.config().context.max_windows
    more = config.model_copy(update={"context": config.context.model_copy(update={"max_windows": 2})})
    model, *_ = build_compress(more)
    one, other = made.model.state_dict(), model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in made.model.named_parameters() if p.requires_grad
    }
    assert model.settings.rates == (2, 6)
    assert model.settings.max_windows == 2
    save_compress(model, made.tokenizers, tmp_path / "next", sidecar=ABOUT)
    assert load_compress(tmp_path / "next")[2]["base"] == str(make.folders["llama"])
    for changes in ({"rates": (1,)}, {"pooling": "mean"}, {"compressor": "modernbert"}, {"query_dependent": False}):
        with pytest.raises(ConfigError, match="with which training goes on"):
            build_compress(make.config(model={"model_name_or_path": str(tmp_path / "run")}, **changes))


def test_what_does_not_belong_together_is_refused(make: SimpleNamespace, tmp_path: Path) -> None:
    made = make.model()
    base = tmp_path / "base"
    shutil.copytree(make.folders["llama"], base)
    folder = save_compress(made.model, made.tokenizers, tmp_path / "out", sidecar=ABOUT)
    with pytest.raises(ConfigError, match="not the model of a `train compress` run"):
        load_compress(base)
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(base)}))
    assert load_compress(folder)
    network = type(made.model.generator).from_pretrained(base)
    disturb(network)
    network.save_pretrained(base)
    with pytest.raises(DataError, match="another base"):
        load_compress(folder)
    for name, message in (
        ("heads.safetensors", "not the weights of this"),
        ("compressor/model.safetensors", "do not fit"),
    ):
        broken = save_compress(made.model, made.tokenizers, tmp_path / "broken", sidecar=ABOUT)
        other = make.model(num_memory_tokens=5, num_layers=1)
        save_compress(other.model, other.tokenizers, tmp_path / "other", sidecar=ABOUT)
        shutil.copy(tmp_path / "other" / name, broken / name)
        with pytest.raises(DataError, match=message):
            load_compress(broken)
        (broken / name).write_bytes(b"no weights")
        with pytest.raises(DataError):
            load_compress(broken)


@pytest.mark.parametrize("held", ["load_in_4bit", "load_in_8bit"])
def test_a_base_of_few_bits(held: str, make: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bases of few bits need it")
    made = make.model(model={held: True})
    batch = made.batch(*ROWS)
    trained = {p.dtype for p in made.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    output = made.model(batch)
    nn.functional.cross_entropy(output.logits, batch.targets).backward()
    assert all(p.grad is not None for p in made.model.compressor.parameters())
    made.model.zero_grad()
    folder = save_compress(made.model, made.tokenizers, tmp_path / "out", sidecar=ABOUT)
    again, tokenizers, _ = load_compress(folder, "cpu")
    with torch.no_grad():
        assert torch.equal(again(batch).logits, made.model(batch).logits)
    assert torch.equal(memories(again, [batch.windows])[0].vectors, memories(made.model, [batch.windows])[0].vectors)
    assert isinstance(tokenizers, Tokenizers)
