"""The table of fields: every command's, its words, and what text becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragtrain.cli.app import COMMANDS
from ragtrain.cli.options import GENERAL_FLAGS
from ragtrain.config import fields
from ragtrain.config.commands import EvalConfig, FetchConfig, RagConfig
from ragtrain.config.fields import Shape


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_names_are_unique_and_described(command):
    table = fields.leaves(command)
    names = [leaf.name for leaf in table.values()]
    assert len(names) == len(set(names)) > 0
    flags = {leaf.flag for leaf in table.values()}
    flags |= {f"--no-{leaf.flag[2:]}" for leaf in table.values() if leaf.shape.scalar is bool}
    assert not flags & set(GENERAL_FLAGS)
    for leaf in table.values():
        assert leaf.description.endswith("."), leaf.dotted
        assert len(leaf.description) > 10, leaf.dotted


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_table_has_every_field_and_its_default(command):
    config = command()
    flat = {}
    for name, value in config:
        if name in fields.sections(command):
            flat.update({f"{name}.{inner}": inner_value for inner, inner_value in value})
        else:
            flat[name] = value
    assert {dotted: leaf.default for dotted, leaf in fields.leaves(command).items()} == flat


def test_fields_of_the_command_come_before_its_sections():
    depths = [len(leaf.path) for leaf in fields.leaves(RagConfig).values()]
    assert depths == sorted(depths)


@pytest.mark.parametrize(
    ("dotted", "words", "metavar"),
    [
        ("loop.max_steps", "a whole number above 0, or null", "INT"),
        ("loop.seed", "a whole number at least 0", "INT"),
        ("loop.mixed_precision", "one of no, fp16, bf16, auto", "no|fp16|bf16|auto"),
        ("objective.label_smoothing", "a number at least 0 and at most 1", "NUMBER"),
        ("optim.adam_beta1", "a number at least 0 and below 1", "NUMBER"),
        ("run.overwrite", "true or false", "BOOL"),
        ("run.output_dir", "a path", "PATH"),
        ("run.trackers", "a list of which each is a text", "TEXT,..."),
    ],
)
def test_expected_and_metavar(dotted, words, metavar):
    shape = fields.leaves(RagConfig)[dotted].shape
    assert fields.expected(shape) == words
    assert fields.metavar(shape) == metavar


def test_bounds_inside_a_list_and_beside_null():
    assert fields.expected(fields.leaves(EvalConfig)["recall_at"].shape).endswith("a whole number above 0")
    assert fields.expected(fields.leaves(FetchConfig)["eval_fraction"].shape) == "a number above 0 and below 1"
    assert fields.leaves(EvalConfig)["n_docs"].shape == Shape(int, optional=True, low=0, low_open=True)


@pytest.mark.parametrize(
    ("shape", "text", "value"),
    [
        (Shape(int, optional=True), "null", None),
        (Shape(int, optional=True), "none", None),
        (Shape(int), "null", "null"),
        (Shape(int), "1e4", 10000),
        (Shape(int), "1.5e0", "1.5e0"),
        (Shape(int), "12", "12"),
        (Shape(int), "inf", "inf"),
        (Shape(str, optional=True), "none", "none"),
        (Shape(str, optional=True), "null", None),
        (Shape(str), " a ", " a "),
        (Shape(str, choices=("no",)), "no", "no"),
        (Shape(str, many=True), "a, b", ["a", "b"]),
        (Shape(str, many=True), "[a, 'b']", ["a", "b"]),
        (Shape(str, many=True), "", []),
        (Shape(str, many=True), "none", []),
        (Shape(Path), "x/y", "x/y"),
    ],
)
def test_parse_text(shape, text, value):
    parsed = fields.parse_text(shape, text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fields.parse_text(Shape(Path), "~/runs") == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("max_stpes", "max_steps"),
        ("lr", "learning_rate"),
        ("bs", "batch_size"),
        ("per_device_train_batch_size", "batch_size"),
        ("epochs", "num_epochs"),
        ("n-dcos", "n_docs"),
        ("xylophone", None),
        ("", None),
    ],
)
def test_nearest(word, name):
    assert fields.nearest(word, [leaf.name for leaf in fields.leaves(RagConfig).values()]) == name


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), ((1, 5), "1,5"), (1e-8, "1e-08"), (0.1, "0.1"), (3.0, "3")]
)
def test_show(value, text):
    assert fields.show(value) == text
