"""Weights on the disk: whole models, and what is trained of models that are mostly frozen."""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ragtrain.errors import CheckpointError
from ragtrain.models.weights import FILE, base_fingerprint, is_partial, load_weights, save_weights


class Net(nn.Module):
    """A base, a tied weight, a head, and two buffers of which one is not saved."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(50, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 50, bias=False)
        self.head.weight = self.embed.weight
        self.extra = nn.Linear(4, 2)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("cache", torch.randn(2), persistent=False)


def frozen(seed: int = 0) -> Net:
    net = Net(seed)
    net.embed.requires_grad_(False)
    net.body.requires_grad_(False)
    return net


def moved(net: Net) -> Net:
    """As if trained."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
        net.mean.add_(1.0)
    return net


def test_whole_models_are_saved_whole(tmp_path):
    net = moved(Net())
    save_weights(net, tmp_path)
    assert not is_partial(net)
    again = Net(seed=1)
    load_weights(again, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("make", [frozen, Net])
def test_only_what_is_trained(tmp_path, make):
    """Read into a model that is frozen in the same way, and into one of which nothing is frozen (for evaluation)."""
    net = moved(frozen())
    save_weights(net, tmp_path)
    assert set(load_file(tmp_path / FILE)) == {"extra.weight", "extra.bias", "mean"}
    again = make()
    load_weights(again, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.head.weight is again.embed.weight


def test_a_tied_weight_that_is_trained_is_written_once(tmp_path):
    net = Net()
    net.body.requires_grad_(False)
    save_weights(moved(net), tmp_path)
    assert "embed.weight" in load_file(tmp_path / FILE)
    assert "head.weight" not in load_file(tmp_path / FILE)
    again = Net()
    load_weights(again, tmp_path)
    assert torch.equal(again.head.weight, net.embed.weight)


@pytest.mark.parametrize("make", [frozen, Net])
def test_another_base(tmp_path, make):
    save_weights(frozen(), tmp_path)
    with pytest.raises(CheckpointError, match="trained on another base: the 3 frozen weights"):
        load_weights(make(1), tmp_path)


def rewritten(tmp_path, change) -> None:
    """Save a partial model and change the tensors of the file, keeping what is said about the base."""
    from safetensors import safe_open

    save_weights(frozen(), tmp_path)
    with safe_open(tmp_path / FILE, "pt") as file:
        about = file.metadata()
    tensors = load_file(tmp_path / FILE)
    change(tensors)
    save_file(tensors, tmp_path / FILE, metadata=about)


@pytest.mark.parametrize(
    ("change", "make", "message"),
    [
        (lambda t: t.pop("extra.bias"), frozen, r"on 3 frozen weights, and of the model's 5 it lacks: extra\.bias$"),
        (lambda t: t.pop("extra.bias"), Net, r"on 3 frozen weights, and of the model's 5 it lacks: body\.bias, "),
        (lambda t: t.pop("mean"), Net, "lacks buffers of the model: mean"),
        (lambda t: t.update(new=torch.ones(1)), Net, "weights that the model has not: new"),
        (lambda t: t.update({"body.bias": torch.ones(4)}), frozen, r"on 3 frozen weights, .* lacks: body\.weight, "),
        (lambda t: t.update(mean=torch.ones(4)), Net, "shapes differ: mean"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, make, message):
    rewritten(tmp_path, change)
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(net, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="do not fit"):
        load_weights(Net(), tmp_path)


def test_a_base_in_half_precision_is_the_same_base():
    weight = {"w": torch.randn(300, 7)}
    assert base_fingerprint(weight) == base_fingerprint({"w": weight["w"].bfloat16()})
    assert base_fingerprint(weight) != base_fingerprint({"w": weight["w"] * 1.01})
    assert base_fingerprint(weight) != base_fingerprint({"v": weight["w"]})
    assert base_fingerprint(weight) != base_fingerprint({"w": weight["w"].reshape(7, 300)})
    assert base_fingerprint({"n": torch.arange(4), "e": torch.ones(0)})


def test_adapters(tmp_path):
    """The file of a model with adapters has the adapters, and fits a model with fresh ones on the same base."""

    def make(seed):
        torch.manual_seed(seed)
        net = Net()
        torch.manual_seed(seed)
        return peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["body", "extra"]))

    net = make(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    save_weights(net, tmp_path)
    names = set(load_file(tmp_path / FILE))
    assert len(names) == 5
    assert sum("lora_" in name for name in names) == 4
    again = make(2)
    load_weights(again, tmp_path)
    x = torch.randn(3, 4)
    assert torch.equal(net.base_model.model.body(x), again.base_model.model.body(x))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_frozen_retriever_is_left_out_and_found_again(tiny, tmp_path, kind):
    """As a run without question encoder training saves, and as its evaluation reads: nothing is frozen there."""

    def make(**options):
        torch.manual_seed(3)
        encoder, generator = tiny.dpr(), tiny.generator(kind)
        return tiny.rag(generator, encoder=encoder, **options)

    model = make(train_question_encoder=False)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.add_(0.1)
    save_weights(model, tmp_path)
    assert not any(name.startswith("question_encoder") for name in load_file(tmp_path / FILE))
    again = make()
    assert not is_partial(again)
    load_weights(again, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        next(again.question_encoder.parameters()).mul_(2)
    with pytest.raises(CheckpointError, match="another base"):
        load_weights(again, tmp_path)
