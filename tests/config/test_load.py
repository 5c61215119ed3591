"""Files, arguments and flags become one configuration, or one error that says everything."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from pydantic import model_validator

from ragtrain.config.base import Command, Section
from ragtrain.config.commands import CompareConfig, FetchConfig, PrepareConfig, RagConfig, SearchConfig
from ragtrain.config.dump import dump_yaml
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text, name="a.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(command, files=(), overrides=(), flags=None, **more):
    with pytest.raises(ConfigError) as caught:
        load_config(command, files, overrides, flags, **more)
    assert caught.value.exit_code == 2
    lines = caught.value.message.splitlines()
    assert lines[0].startswith(f"{len(lines) - 1} problem")
    return [line.strip() for line in lines[1:]]


def test_defaults():
    resolved = load_config(RagConfig)
    assert resolved.config == RagConfig()
    assert set(resolved.origins.values()) == {"default"}


def test_precedence(write):
    first = write("loop:\n  max_steps: 1\n  batch_size: 1\n  seed: 1\nn_docs: 1\n", "first.yaml")
    second = write("batch_size: 2\nseed: 2\nn_docs: 2\n", "second.yaml")
    resolved = load_config(RagConfig, [first, second], ["seed=3", "model.n_docs=3"], {"n_docs": "4"})
    loop = resolved.config.loop
    assert (loop.max_steps, loop.batch_size, loop.seed, resolved.config.model.n_docs) == (1, 2, 3, 4)
    origins = resolved.origins
    assert origins["loop.max_steps"] == f"{first}:2"
    assert origins["loop.batch_size"] == f"{second}:1"
    assert origins["loop.seed"] == "argument"
    assert origins["model.n_docs"] == "flag"
    assert origins["loop.num_epochs"] == "default"


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_numbers_of_yaml(write, text):
    assert load_config(RagConfig, [write(f"learning_rate: {text}")]).config.optim.learning_rate == 1e-4


def test_the_field_decides_what_a_word_means(write):
    text = "mixed_precision: no\noverwrite: yes\ntrain_question_encoder: off\noutput_dir: 2024\nquestion_key: 1.0\n"
    config = load_config(RagConfig, [write(text)]).config
    assert config.loop.mixed_precision == "no"
    assert config.run.overwrite is True
    assert config.model.train_question_encoder is False
    assert config.run.output_dir == Path("2024")
    assert config.data.question_key == "1.0"


def test_lists_and_nulls(write):
    text = "trackers: [tensorboard, 'wandb']\nsave_steps: null\neval_steps: ~\nmax_val_samples:\n"
    config = load_config(RagConfig, [write(text)]).config
    assert config.run.trackers == ("tensorboard", "wandb")
    assert (config.loop.save_steps, config.loop.eval_steps, config.data.max_val_samples) == (None, None, None)
    assert load_config(RagConfig, [write("trackers: a,b")]).config.run.trackers == ("a", "b")
    assert load_config(RagConfig, flags={"trackers": ["a,b", "c"]}).config.run.trackers == ("a", "b", "c")
    assert load_config(RagConfig, overrides=["trackers=none"]).config.run.trackers == ()


def test_quoted_null_is_a_text(write):
    assert load_config(PrepareConfig, [write("query_prompt: 'null'")]).config.encoder.query_prompt == "null"


def test_a_field_named_like_its_section(write):
    assert load_config(PrepareConfig, [write("encoder: a/b")]).config.encoder.encoder == "a/b"
    assert load_config(PrepareConfig, [write("encoder: {encoder: a/b}")]).config.encoder.encoder == "a/b"
    assert load_config(PrepareConfig, overrides=["encoder=a/b"]).config.encoder.encoder == "a/b"


def test_dashes_and_dots_in_names(write):
    assert load_config(RagConfig, [write("max-steps: 5")]).config.loop.max_steps == 5
    assert load_config(RagConfig, [write("loop.max_steps: 6")]).config.loop.max_steps == 6
    assert load_config(RagConfig, overrides=["loop.max-steps=7"]).config.loop.max_steps == 7


def test_anchors_and_merge_keys(write):
    text = "loop: &base {batch_size: 2, seed: 1}\nmax_steps: 3\n"
    assert load_config(RagConfig, [write(text)]).config.loop.batch_size == 2
    text = "loop:\n  <<: {batch_size: 2, seed: 1}\n  seed: 4\n"
    assert load_config(RagConfig, [write(text)]).config.loop.batch_size == 2


def test_empty_files(write):
    for text in ("", "# nothing\n", "null\n", "loop:\n"):
        assert load_config(RagConfig, [write(text)]).config == RagConfig()


def test_run_folder_as_configuration(tmp_path):
    original = load_config(RagConfig, overrides=["max_steps=5", "learning_rate=1e-4", "trackers=a,b"]).config
    values = {"kind": "rag", **original.model_dump(mode="json")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert load_config(RagConfig, [tmp_path / "config.yaml"]).config == original
    assert load_config(RagConfig, [tmp_path]).config == original


def test_configuration_of_another_kind(write):
    assert problems(RagConfig, [write("kind: sft")])[0].endswith("ragtrain train rag expects 'rag'")


def test_positional_words():
    assert load_config(FetchConfig, overrides=["squad", "seed=1"]).config.dataset == "squad"
    assert load_config(CompareConfig, overrides=["a", "seed=1", "b/c=1"]).config.runs == (Path("a"), Path("b/c=1"))
    assert load_config(SearchConfig, overrides=["capital", "of", "Norway"]).config.question == "capital of Norway"
    assert problems(FetchConfig, overrides=["squad", "nq"]) == [
        "dataset = 'squad nq' (argument): one dataset at a time is expected"
    ]
    assert "given twice" in problems(FetchConfig, overrides=["squad"], flags={"dataset": "nq"})[0]
    assert problems(RagConfig, overrides=["x.yaml"]) == [
        "x.yaml (argument): expected KEY=VALUE or a flag; for a file write --config x.yaml"
    ]


def test_everything_at_once(write):
    path = write(
        "loop:\n  max_stpes: 5\n  seed: -1\noptim: {batch_size: 2}\nmodle: {n_docs: 3}\nlearning_rate: fast\n"
        "max_steps: 1\nmax_steps: 2\n"
    )
    found = problems(
        RagConfig, [path], ["lr=1", "run=x", "nonsense"], {"n_docs": "0", "--n-dcos": "3"}, known_flags=["--json"]
    )
    assert found == [
        f"max_steps ({path}:8): given twice in this file, first on line 7",
        f"loop.max_stpes = '5' ({path}:2): unknown key; did you mean loop.max_steps?",
        f"optim.batch_size = '2' ({path}:4): no such key in section 'optim'; batch_size belongs to loop.batch_size",
        f"modle ({path}:5): unknown section; did you mean model?",
        "lr = '1' (argument): unknown key; did you mean optim.learning_rate?",
        "run = 'x' (argument): is a section, not a value; its keys are output_dir, overwrite, trackers, on_alarm, dry_run",
        "nonsense (argument): expected KEY=VALUE or a flag",
        "--n-dcos 3: unknown flag; did you mean --n-docs?",
        "model.n_docs = '0' (flag --n-docs): expected a whole number above 0",
        f"loop.seed = '-1' ({path}:3): expected a whole number at least 0",
        f"optim.learning_rate = 'fast' ({path}:6): expected a number above 0, or null",
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("max_steps: 1\nloop: {max_steps: 2}\n", 2, "given twice in this file, first on line 1"),
        ("loop: {seed: 1}\nloop: {seed: 2}\n", 2, "given twice in this file, first on line 1"),
        ("max_steps: {a: 1}\n", 1, "a mapping where a whole number above 0, or null is expected"),
        ("max_steps: [1, 2]\n", 1, "expected a whole number above 0"),
        ("seed: null\n", 1, "expected a whole number at least 0"),
        ("learning_rate: .inf\n", 1, "expected a number above 0"),
        ("learning_rate: nan\n", 1, "expected a number above 0"),
        ("a: 1\n- b\n", 2, "expected <block end>"),
        ("- a\n", 1, "a mapping of keys to values is expected"),
        ("best_metric: !!python/object/apply:os.system [ls]\n", 1, "is refused"),
        ("trackers: [!!python/name:os.system x]\n", 1, "is refused"),
        ("run: {lr: 1}\n", 1, "did you mean optim.learning_rate?"),
    ],
)
def test_mistakes_of_a_file_have_its_line(write, text, line, words):
    path = write(text)
    found = problems(RagConfig, [path])
    assert len(found) == 1
    assert f"{path}:{line}" in found[0]
    assert words in found[0]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"best_metric: \xe9")
    found = problems(RagConfig, [tmp_path / "none.yaml", tmp_path / "latin.yaml"])
    assert "none.yaml" in found[0]
    assert "No such file" in found[0]
    assert "UTF-8" in found[1]


def test_two_documents_in_a_file(write):
    assert len(problems(RagConfig, [write("seed: 1\n---\nseed: 2\n")])) == 1


def test_long_values_are_cut():
    line = problems(RagConfig, overrides=["max_steps=" + "x" * 500])[0]
    assert len(line) < 160


def test_flags_from_python():
    config = load_config(RagConfig, flags={"max_steps": 5, "overwrite": True, "trackers": ("a",)}).config
    assert (config.loop.max_steps, config.run.overwrite, config.run.trackers) == (5, True, ("a",))
    assert problems(RagConfig, flags={"nope_nope": 1})[0].startswith("nope_nope = 1 (flag)")


class Inner(Section):
    """Numbers."""

    low: int = 0
    """Lower end."""
    high: int = 1
    """Upper end."""


class Checked(Command):
    """A command with a check across fields and a section whose default differs from its class's."""

    name: ClassVar[str] = "checked"
    inner: Inner = Inner(high=9)

    @model_validator(mode="after")
    def ordered(self):
        if self.inner.low >= self.inner.high:
            raise ValueError(f"low ({self.inner.low}) must be below high ({self.inner.high}): raise --high")
        return self


def test_check_across_fields():
    assert problems(Checked, overrides=["low=9"]) == ["low (9) must be below high (9): raise --high"]


def test_defaults_of_a_section_survive_a_partial_mapping():
    resolved = load_config(Checked, overrides=["low=3"])
    assert resolved.config.inner == Inner(low=3, high=9)


def test_dump_reads_back(tmp_path):
    overrides = [
        "max_steps=5", "learning_rate=1e-7", "best_metric=no", "resume=a: b # c", "trackers=x,null,1", "output_dir=1.5",
        "question_key='quoted'", "answer_key=é\x85", "generator=",
    ]  # fmt: skip
    resolved = load_config(RagConfig, overrides=overrides)
    text = dump_yaml(resolved.config, resolved.origins)
    path = tmp_path / "dumped.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(RagConfig, [path]).config == resolved.config
    assert yaml.safe_load(text) == resolved.config.model_dump(mode="json")
