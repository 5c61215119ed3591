"""A configuration written out."""

from __future__ import annotations

import pytest
import yaml

from ragtrain.cli.app import COMMANDS
from ragtrain.config import fields
from ragtrain.config.commands import RagConfig
from ragtrain.config.dump import dump_yaml, json_schema
from ragtrain.config.load import load_config


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_defaults_read_back_by_us_and_by_any_reader(command, tmp_path):
    config = command()
    text = dump_yaml(config)
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert load_config(command, [path]).config == config


def test_descriptions_and_origins():
    resolved = load_config(RagConfig, overrides=["max_steps=5"])
    lines = dump_yaml(resolved.config, resolved.origins).splitlines()
    at = lines.index("  max_steps: 5  # argument")
    assert lines[at - 1] == "  # Optimizer steps to train for; without it, ``num_epochs`` decides."
    assert "  num_epochs: 3.0  # default" in lines
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_schema_names_every_field(command):
    schema = json_schema(command)
    assert schema["title"] == f"ragtrain {command.name}"
    assert schema["additionalProperties"] is False
    known = dict(schema["properties"])
    for section in schema.get("$defs", {}).values():
        known.update(section["properties"])
    for leaf in fields.leaves(command).values():
        assert " ".join(known[leaf.name]["description"].split()) or leaf.name
