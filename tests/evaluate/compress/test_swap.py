"""Other adapters in a generator for a while."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from ragtrain.errors import ConfigError, DataError
from ragtrain.evaluate.compress.subject import Subject
from ragtrain.evaluate.compress.swap import adapters_swapped
from ragtrain.models.adapters import CONFIG_FILE, WEIGHTS_FILE, load_adapters
from ragtrain.models.causal import load_causal


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None]).logits


def test_adapters_of_a_folder_compute_as_if_they_were_loaded_and_own_ones_come_back(
    subject: Subject, base: Path
) -> None:
    generator = subject.model.generator.eval()
    before = copy.deepcopy(generator.state_dict())
    parameters = dict(generator.named_parameters())
    trainable = {name: p.requires_grad for name, p in parameters.items()}
    own = logits(generator)
    fresh, _ = load_causal(base)
    load_adapters(fresh, subject.full_adapters)
    with adapters_swapped(generator, subject.full_adapters):
        assert torch.equal(logits(generator), logits(fresh.eval()))
        assert not torch.equal(logits(generator), own)
    assert torch.equal(logits(generator), own)
    after = generator.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p is parameters[name] for name, p in generator.named_parameters())
    assert {name: p.requires_grad for name, p in generator.named_parameters()} == trainable


def test_own_adapters_come_back_after_an_error(subject: Subject) -> None:
    generator = subject.model.generator.eval()
    own = logits(generator)
    with pytest.raises(KeyError), adapters_swapped(generator, subject.full_adapters):
        raise KeyError
    assert torch.equal(logits(generator), own)


def test_adapters_of_another_form_are_refused(subject: Subject, base: Path, tmp_path: Path) -> None:
    generator, folder = subject.model.generator, subject.full_adapters
    own = logits(generator)
    file = folder / CONFIG_FILE
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "lora_alpha": 99}))
    with pytest.raises(DataError, match="lora_alpha is 99"), adapters_swapped(generator, folder):
        pass
    file.write_text(json.dumps(settings))
    (folder / WEIGHTS_FILE).write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"), adapters_swapped(generator, folder):
        pass
    with pytest.raises(DataError, match="no adapters here"), adapters_swapped(generator, tmp_path):
        pass
    assert torch.equal(logits(generator), own)
    plain, _ = load_causal(base)
    with pytest.raises(ConfigError, match="no adapters"), adapters_swapped(plain, folder):
        pass
