from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ragtrain import runs
from ragtrain.config.commands import CompressConfig, GfmConfig, RagConfig
from ragtrain.errors import ConfigError, DataError
from ragtrain.runs import RunFolder, config_difference, config_hash


def config(**changes):
    """A resolved configuration with dotted changes, as ``loop__seed=1``."""
    content = RagConfig().model_dump()
    for name, value in changes.items():
        section, field = name.split("__")
        assert field in content[section]
        content[section][field] = value
    return content


def everything(path: Path):
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in path.rglob("*")}


def test_create_writes_the_resolved_configuration_kind_first(tmp_path):
    run = RunFolder.create(tmp_path / "deep" / "run", "rag", config(loop__max_steps=7))
    text = (run.path / "config.yaml").read_text()
    assert text.startswith("kind: rag\n")
    content = yaml.safe_load(text)
    assert content.pop("kind") == "rag"
    assert RagConfig(**content) == RagConfig(loop={"max_steps": 7})
    assert [p.name for p in run.path.iterdir()] == ["config.yaml"]


def test_open_gives_back_what_was_created(tmp_path):
    made = RunFolder.create(tmp_path / "run", "rag", config(data__train_data=Path("data/squad")))
    opened = RunFolder.open(tmp_path / "run")
    assert opened == made
    assert opened.config["data"]["train_data"] == "data/squad"
    assert opened.checkpoints == tmp_path / "run" / "checkpoints"
    assert opened.final_model == tmp_path / "run" / "final_model"
    assert opened.tensorboard == tmp_path / "run" / "runs"
    assert opened.log_file == tmp_path / "run" / "train.log"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it has no config.yaml"),
        ("loop: {}\n", "it has no kind"),
        ("- a\n", "it has no kind"),
        ("kind: [\n", "not readable as YAML"),
        ("kind: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ],
)
def test_open_refuses_what_is_no_run(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"loop__max_steps": 9}, {"loop__num_epochs": 9.0}, {"loop__resume": "latest"}, {"loop__logging_steps": 1},
        {"loop__save_steps": 1}, {"loop__save_total_limit": None}, {"loop__eval_steps": 1},
        {"loop__early_stopping_patience": 1}, {"loop__gradient_accumulation_steps": 1},
        {"run__output_dir": Path("elsewhere")}, {"run__overwrite": True}, {"run__trackers": ()},
        {"run__dry_run": True},
    ],
)  # fmt: skip
def test_what_does_not_define_a_run(change):
    assert config_hash(config(**change)) == config_hash(config())
    assert config_difference(config(), config(**change)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"loop__seed": 1}, {"loop__batch_size": 1}, {"loop__mixed_precision": "no"}, {"loop__best_metric": "f1"},
        {"optim__learning_rate": 1.0}, {"optim__warmup_steps": 1}, {"data__train_data": Path("x")},
        {"model__n_docs": 1}, {"objective__label_smoothing": 0.1},
    ],
)  # fmt: skip
def test_what_defines_a_run(change):
    assert config_hash(config(**change)) != config_hash(config())
    (line,) = config_difference(config(), config(**change))
    assert line.startswith(next(iter(change)).replace("__", ".") + ": ")


def test_every_field_that_does_not_define_a_run_exists():
    others = [each().model_dump(mode="json") for each in (CompressConfig, GfmConfig)]
    fields = {name for sections in (config(), *others) for section in sections.values() for name in section} | {"kind"}
    assert fields >= runs.NOT_DEFINING


def test_the_hash_is_of_values_and_not_of_their_types_or_order():
    a = {"loop": {"seed": 1, "x": (1, 2)}, "data": {"p": Path("a")}}
    b = {"data": {"p": "a"}, "loop": {"x": [1, 2], "seed": 1}}
    assert config_hash(a) == config_hash(b)


def test_the_same_run_is_continued(tmp_path):
    run = RunFolder.create(tmp_path / "run", "rag", config())
    run.append_metrics({"step": 1})
    again = RunFolder.create(tmp_path / "run", "rag", config(loop__max_steps=50))
    assert again.read_metrics() == [{"step": 1}]
    assert RunFolder.open(tmp_path / "run").config["loop"]["max_steps"] == 50


@pytest.mark.parametrize("resume", ["auto", "latest"])
def test_another_run_is_refused_and_untouched(tmp_path, resume):
    RunFolder.create(tmp_path / "run", "rag", config()).append_metrics({"step": 1})
    before = everything(tmp_path)
    with pytest.raises(ConfigError) as caught:
        RunFolder.create(tmp_path / "run", "rag", config(loop__seed=3, model__n_docs=9), resume=resume)
    assert "loop.seed: 0 there, 3 here" in caught.value.message
    assert "model.n_docs: 5 there, 9 here" in caught.value.message
    for option in ("--resume never", "--overwrite", "--output-dir"):
        assert option in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="kind: rag there, sft here"):
        RunFolder.create(tmp_path / "run", "sft", config())
    assert everything(tmp_path) == before


def test_overwrite_removes_the_other_run(tmp_path):
    RunFolder.create(tmp_path / "run", "rag", config()).append_metrics({"step": 1})
    RunFolder.create(tmp_path / "run", "rag", config(loop__seed=3), overwrite=True)
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "config.yaml"]
    assert RunFolder.open(tmp_path / "run").config["loop"]["seed"] == 3


def test_overwrite_does_not_remove_what_is_to_be_resumed(tmp_path):
    RunFolder.create(tmp_path / "run", "rag", config()).append_metrics({"step": 1})
    run = RunFolder.create(tmp_path / "run", "rag", config(), overwrite=True, resume="latest")
    assert run.read_metrics() == [{"step": 1}]
    with pytest.raises(ConfigError, match="another run"):
        RunFolder.create(tmp_path / "run", "rag", config(loop__seed=3), overwrite=True, resume="latest")


def test_resume_never_sets_runs_aside(tmp_path):
    for step in (1, 2, 3):
        RunFolder.create(tmp_path / "run", "rag", config(loop__seed=step), resume="never").append_metrics(
            {"step": step}
        )
    steps = {path.name: RunFolder.open(path).read_metrics()[0]["step"] for path in tmp_path.iterdir()}
    assert steps == {"run.old-1": 1, "run.old-2": 2, "run": 3}


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": "never"}])
def test_a_folder_of_other_things_is_never_touched(tmp_path, options):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(ConfigError, match=r"'thesis.tex' .* no run"):
        RunFolder.create(tmp_path, "rag", config(), **options)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(tmp_path / "thesis.tex", "rag", config(), **options)


def test_a_start_that_was_killed_early_is_no_obstacle(tmp_path):
    (tmp_path / "train.log").write_text("started\n")
    (tmp_path / ".config.yaml.tmp-1").write_text("ki")
    RunFolder.create(tmp_path, "rag", config())
    assert RunFolder.open(tmp_path).kind == "rag"


def test_check_writes_nothing(tmp_path):
    RunFolder.check(tmp_path / "run", "rag", config())
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = RunFolder.create(tmp_path / "run", "rag", config())
    run.write_env()
    run.write_data({})
    run.append_metrics({"step": 1})
    run.truncate_metrics(0)
    assert list(tmp_path.iterdir()) == []


def test_env_and_data(tmp_path):
    run = RunFolder.create(tmp_path / "run", "rag", config())
    run.write_env(device="cpu", seed=3, processes=2)
    env = json.loads((run.path / "env.json").read_text())
    assert (env["device"], env["seed"], env["processes"]) == ("cpu", 3, 2)
    assert env["packages"]["torch"]
    assert env["ragtrain"]
    assert env["python"].count(".") == 2
    run.write_data({"train": {"path": Path("x"), "count": 3}})
    assert json.loads((run.path / "data.json").read_text()) == {"train": {"path": "x", "count": 3}}


def test_git_revision_is_that_of_this_checkout():
    done = subprocess.run(
        ["git", "-C", str(Path(runs.__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("the package is not in a git checkout here")
    assert (runs._git_revision() or "").rstrip("+") == done.stdout.strip()


def test_git_revision_of_an_installed_package_is_not_that_of_its_surroundings(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "ragtrain").mkdir()
    (tmp_path / "ragtrain" / "__init__.py").touch()
    monkeypatch.setattr(runs.ragtrain, "__file__", str(tmp_path / "ragtrain" / "__init__.py"))
    assert runs._git_revision() is None


def test_metrics_are_valid_json_lines(tmp_path):
    run = RunFolder.create(tmp_path / "run", "rag", config())
    run.append_metrics({"step": 1, "loss": 0.5, "parts": {"entropy": float("nan")}})
    run.append_metrics({"step": 2, "loss": float("inf"), "note": "Åse"})
    lines = run.metrics_file.read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "loss": 0.5, "parts": {"entropy": None}}
    assert json.loads(lines[1]) == {"step": 2, "loss": None, "note": "Åse"}
    assert "NaN" not in lines[0]


def test_truncating_metrics(tmp_path):
    run = RunFolder.create(tmp_path / "run", "rag", config())
    run.truncate_metrics(3)
    for step in range(1, 6):
        run.append_metrics({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 6, "lo')  # a kill cut it short
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]
    run.truncate_metrics(3)
    run.append_metrics({"step": 4})
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4]
    assert [p.name for p in run.path.iterdir() if p.name.startswith(".")] == []


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    run = RunFolder.create(tmp_path / "run", "rag", config())
    run.metrics_file.write_text('{"step": 1}\nbroken\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a JSON line"):
        run.read_metrics()


def test_commands_read_runs_without_torch():
    code = "import sys, ragtrain.runs; print('torch' in sys.modules, 'yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False False"
