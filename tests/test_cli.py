"""The command line: what it calls, what it says, how it ends, and what it does not import."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer.main
import yaml

import ragtrain
from ragtrain.cli import main
from ragtrain.cli.app import COMMANDS, build_app
from ragtrain.cli.execute import explain
from ragtrain.cli.layout import walk
from ragtrain.cli.options import split_words
from ragtrain.config import fields
from ragtrain.config.commands import CompareConfig, EvalConfig, FetchConfig, PrepareConfig, RagConfig, SearchConfig
from ragtrain.config.load import load_config
from ragtrain.errors import (
    ConfigError,
    DataError,
    GateError,
    Interrupted,
    NumericsError,
    RagtrainError,
)

ROOT = Path(ragtrain.__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "faiss", "accelerate", "numpy", "peft", "evaluate", "pandas", "rich"}
HELPS = [[], ["data"], ["index"], ["train"], ["config"], *(command.name.split() for command in COMMANDS)]


@pytest.fixture
def call(monkeypatch):
    """Replace a command's module by one that records its configuration and returns or raises what is asked."""

    def call(command, arguments, outcome=None):
        received = []

        def function(config):
            received.append(config)
            if isinstance(outcome, BaseException):
                raise outcome
            return types.SimpleNamespace(to_json=lambda: {"answer": outcome})

        module, _, name = COMMANDS[command].partition(":")
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: function}))
        code = main([*command.name.split(), *arguments])
        return code, (received[0] if received else None)

    yield call
    logger = logging.getLogger("ragtrain")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
        check=False,
    )


# --- what is imported ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [*([*words, "--help"] for words in HELPS), ["--version"], ["train", "rag", "--oops"]])
def test_help_stays_light(words):
    code = (
        "import sys; from ragtrain.cli import main; code = main(sys.argv[1:]); "
        "print('LOADED', *sorted(name for name in sys.modules if '.' not in name)); sys.exit(code)"
    )
    done = python(code, *words)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "typer" in loaded, done.stderr
    assert not HEAVY & loaded
    assert done.returncode == (2 if "--oops" in words else 0)


def test_configuration_stays_light():
    code = "import sys, ragtrain.config.load, ragtrain.config.dump, ragtrain.config.commands; print(*sys.modules)"
    assert not HEAVY & set(python(code).stdout.split())


# --- help ------------------------------------------------------------------------------------------------------------


def help_of(words, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120, 40])
@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_fits(words, columns, capsys, monkeypatch):
    text = help_of(words, columns, capsys, monkeypatch)
    assert text.startswith(f"Usage: {' '.join(['ragtrain', *words])}")
    assert "\x1b" not in text
    if columns >= 80:
        assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_has_every_field_group_default_and_example(command, capsys, monkeypatch):
    text = help_of(command.name.split(), 120, capsys, monkeypatch)
    flat = " ".join(text.split())
    for leaf in fields.leaves(command).values():
        flag = f"--[no-]{leaf.flag[2:]}" if leaf.shape.scalar is bool else f"{leaf.flag} {fields.metavar(leaf.shape)}"
        assert f"  {flag}" in text
        assert f"\n{leaf.title}\n" in text
        assert leaf.description.replace("``", "") in flat
    for example in command.examples:
        assert example in " ".join(text.replace("\\\n", " ").split())
    assert text.index("--config FILE") > text.index(f"\n{leaf.title}\n")


def test_defaults_are_shown(capsys, monkeypatch):
    text = help_of(["train", "rag"], 120, capsys, monkeypatch)
    assert "each device. [default: 8]" in " ".join(text.split())
    assert "[default: 500; may be null]" in " ".join(text.split())
    assert "[default: on]" in " ".join(text.split())


def test_root_help_lists_commands_in_the_order_of_work(capsys, monkeypatch):
    text = help_of([], 80, capsys, monkeypatch)
    places = [text.index(f"\n  {command.name} ") for command in COMMANDS]
    assert places == sorted(places)
    assert "Exit codes" in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_are_valid(command):
    for example in command.examples:
        words = shlex.split(example)
        assert " ".join(words[: len(command.name.split()) + 1]) == f"ragtrain {command.name}"
        assert main([*words[1:], "--print-config"]) == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ragtrain {ragtrain.__version__}\n"


# --- from words to a configuration -----------------------------------------------------------------------------------


def test_flags_in_both_spellings(call):
    arguments = [
        "--max-steps",
        "5",
        "--batch_size=2",
        "--no_train_question_encoder",
        "--overwrite",
        "--trackers",
        "a,b",
    ]
    code, config = call(RagConfig, [*arguments, "--trackers", "c", "seed=4", "model.n-docs=3"])
    assert code == 0
    assert config == load_config(
        RagConfig,
        flags={
            "max_steps": 5, "batch_size": 2, "train_question_encoder": False, "overwrite": True,
            "trackers": ["a", "b", "c"], "seed": 4, "n_docs": 3,
        },
    ).config  # fmt: skip


def test_values_keep_their_underscores_and_dashes(call):
    _, config = call(RagConfig, ["--question_key", "--odd_key", "--output-dir", "my_run", "--best-metric=a_b-c"])
    assert (config.data.question_key, config.run.output_dir, config.loop.best_metric) == (
        "--odd_key", Path("my_run"), "a_b-c",
    )  # fmt: skip


def test_null_on_the_command_line(call):
    _, config = call(RagConfig, ["--save-steps", "null", "--max-val-samples=none"])
    assert (config.loop.save_steps, config.data.max_val_samples) == (None, None)


def test_files_then_arguments_then_flags(call, tmp_path):
    (tmp_path / "a.yaml").write_text("max_steps: 1\nseed: 1\nn_docs: 1\nbatch_size: 1\n")
    (tmp_path / "b.yaml").write_text("seed: 2\nn_docs: 2\nbatch_size: 2\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    _, config = call(RagConfig, ["--batch-size", "4", "n_docs=3", *files, "batch_size=3"])
    assert (config.loop.max_steps, config.loop.seed, config.model.n_docs, config.loop.batch_size) == (1, 2, 3, 4)


def test_positional_words(call):
    assert call(FetchConfig, ["squad", "--source", "a,b"])[1].dataset == "squad"
    assert call(CompareConfig, ["a", "seed=3", "--intersect", "b"])[1] == CompareConfig(
        runs=(Path("a"), Path("b")), seed=3, intersect=True
    )
    assert call(SearchConfig, ["who", "wrote", "--n-docs", "2", "it?"])[1].question == "who wrote it?"


def test_every_flag_reaches_its_field(call):
    for command in COMMANDS:
        for leaf in fields.leaves(command).values():
            if leaf.shape.scalar is bool:
                value, arguments = not leaf.default, [f"--{'no-' if leaf.default else ''}{leaf.flag[2:]}"]
            else:
                text = leaf.shape.choices[-1] if leaf.shape.choices else "0.5" if leaf.shape.scalar is float else "7"
                arguments, value = [leaf.flag.replace("-", "_").replace("__", "--"), text], leaf.shape.scalar(text)
            code, config = call(command, arguments)
            assert code == 0, arguments
            found = config
            for part in leaf.path:
                found = getattr(found, part)
            assert found == ((value,) if leaf.shape.many else value), leaf.dotted


def test_everything_wrong_at_once(capsys):
    arguments = ["train", "rag", "--n-dcos", "3", "--seed=-1", "--overwite", "--max-step=4", "lr=2", "foo", "--jsn"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for line in (
        "7 problems in the configuration of ragtrain train rag:",
        "--n-dcos 3: unknown flag; did you mean --n-docs?",
        "--overwite: unknown flag; did you mean --overwrite?",
        "--max-step 4: unknown flag; did you mean --max-steps?",
        "--jsn: unknown flag; did you mean --json?",
        "lr = '2' (argument): unknown key; did you mean optim.learning_rate?",
        "foo (argument): expected KEY=VALUE or a flag",
        "loop.seed = '-1' (flag --seed): expected a whole number at least 0",
        "hint: ragtrain train rag --help",
    ):
        assert line in err
    assert "Traceback" not in err


def test_prefixes_of_flags_are_not_accepted(capsys):
    assert main(["train", "rag", "--max-st", "4", "--print-config"]) == 2
    assert "--max-st 4: unknown flag; did you mean --max-steps?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["No such command 'trian'", "'train'", "hint: ragtrain --help"]),
        (["data", "fech"], ["'fetch'", "hint: ragtrain data --help"]),
        (["train", "rag", "--max-steps"], ["--max-steps", "hint: ragtrain train rag --help"]),
        (["eval", "--overwrite=3"], ["--overwrite", "hint: ragtrain eval --help"]),
        (["--nope"], ["--nope"]),
        ([], ["Usage: ragtrain"]),
        (["data"], ["Usage: ragtrain data"]),
    ],
)
def test_usage_errors(arguments, words, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for word in words:
        assert word in err
    assert "Traceback" not in err


def test_split_words():
    words = ["a=1", "--x", "5", "b", "--y=3", "--z", "c=2", "-", "-q", "-1", "d"]
    assert split_words(words) == (
        ["a=1", "b", "c=2", "-"],
        {"--x": "5", "--y": "3", "--z": None, "-q": None, "-1": "d"},
    )


# --- what is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_print_config_reads_back(command, capsys, tmp_path):
    assert main([*command.name.split(), "--print-config"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "# default" in out
    path = tmp_path / "c.yaml"
    path.write_text(out)
    assert load_config(command, [path]).config == command()


def test_print_config_says_where_values_came_from(capsys, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("\nmax_steps: 5\n")
    assert main(["train", "rag", "--config", str(path), "seed=1", "--n-docs", "2", "--print-config"]) == 0
    out = capsys.readouterr().out
    for line in (f"  max_steps: 5  # {path}:2", "  seed: 1  # argument", "  n_docs: 2  # flag"):
        assert f"{line}\n" in out


def test_print_config_as_json(capsys):
    assert main(["train", "rag", "seed=1", "--print-config", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["config"]["loop"]["seed"] == 1
    assert value["origins"]["loop.seed"] == "argument"


def test_print_schema(capsys):
    assert main(["eval", "--print-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "ragtrain eval"


def test_json_result_is_alone_on_stdout(call, capsys):
    assert call(EvalConfig, ["--json"], outcome=float("nan"))[0] == 0
    assert json.loads(capsys.readouterr().out) == {"answer": None}
    assert call(EvalConfig, [], outcome=1)[0] == 0
    assert capsys.readouterr().out == ""


# --- how it ends -----------------------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """What torch.cuda raises has this name."""


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        (ConfigError("bad", hint="better"), 2, ["error: bad", "hint: better"]),
        (DataError("no answer", path="a.json", line=3, field="answers"), 3, ["a.json:3: field 'answers': no answer"]),
        (NumericsError("loss is nan"), 4, ["loss is nan"]),
        (GateError("worse"), 6, ["worse"]),
        (Interrupted("stopped", hint="resume"), 130, ["stopped", "hint: resume"]),
        (Interrupted("stopped", signal_number=15), 143, ["stopped"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (RagtrainError("odd"), 1, ["odd"]),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 5, ["Tried to allocate 2 GiB"]),
        (RuntimeError("CUDA error: out of memory"), 5, ["out of memory"]),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), 5, ["allocate"]),
        (MemoryError(), 5, ["out of memory: MemoryError"]),
        (ModuleNotFoundError("No module named 'faiss'", name="faiss"), 2, ["faiss", "pip install 'ragtrain[cpu]'"]),
        (ModuleNotFoundError("No module named 'peft.x'", name="peft.x"), 2, ["peft is not installed", "doctor"]),
        (FileNotFoundError(2, "No such file or directory", "x.json"), 3, ["x.json: No such file or directory"]),
        (PermissionError(13, "Permission denied", "runs"), 3, ["runs: Permission denied"]),
        (OSError("unable to reach the hub"), 1, ["unexpected OSError: unable to reach the hub"]),
        (KeyError("weight"), 1, ["unexpected KeyError: 'weight'", "--traceback"]),
        (ValueError(), 1, ["unexpected ValueError: no message"]),
    ],
)
def test_exit_codes(call, capsys, outcome, code, words):
    assert call(RagConfig, [], outcome)[0] == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 24
    for word in words:
        assert word in err


def test_memory_hint_names_three_flags_with_their_values(call, capsys):
    call(RagConfig, ["--batch-size", "6"], MemoryError())
    hint = capsys.readouterr().err.rpartition("hint: ")[2]
    assert "halve --batch-size (now 6)" in hint
    assert "--gradient-accumulation-steps (now 4)" in hint
    assert "--gradient-checkpointing" in hint
    for command in (EvalConfig, PrepareConfig):
        call(command, [], MemoryError())
        assert capsys.readouterr().err.rpartition("hint: ")[2].count(" --") == 3


def test_traceback_on_request(call, capsys):
    call(RagConfig, ["--traceback"], KeyError("weight"))
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "unexpected KeyError" in err


def test_unexpected_error_leaves_its_traceback_in_the_log(monkeypatch, tmp_path, capsys):
    def run(config):
        from ragtrain import report

        report.add_log_file(tmp_path / "train.log")
        raise KeyError("weight")

    monkeypatch.setitem(sys.modules, "ragtrain.train.rag", types.SimpleNamespace(run=run))
    assert main(["train", "rag"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    log = (tmp_path / "train.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "KeyError: 'weight'" in log
    logger = logging.getLogger("ragtrain")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def test_a_result_may_say_the_exit_code(monkeypatch):
    result = types.SimpleNamespace(to_json=dict, exit_code=2)
    monkeypatch.setitem(sys.modules, "ragtrain.doctor", types.SimpleNamespace(run=lambda config: result))
    assert main(["doctor"]) == 2


def test_the_place_in_our_code_is_named():
    with pytest.raises(AttributeError) as caught:
        load_config(None)
    assert "(ragtrain/config/" in explain(caught.value, None).message


def test_quiet(monkeypatch, capsys):
    def run(config):
        logging.getLogger("ragtrain").info("chatter")
        logging.getLogger("ragtrain").warning("careful")
        return types.SimpleNamespace(to_json=dict)

    monkeypatch.setitem(sys.modules, "ragtrain.evaluate", types.SimpleNamespace(run=run))
    assert main(["eval", "--quiet"]) == 0
    err = capsys.readouterr().err
    assert "careful" in err
    assert "chatter" not in err
    assert main(["eval"]) == 0
    assert "chatter" in capsys.readouterr().err


# --- launchers and pipes ---------------------------------------------------------------------------------------------


def test_only_the_first_process_reports(call, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "rag", "--oops"]) == 2
    assert main(["trian"]) == 2
    assert main(["train", "rag", "--print-config"]) == 0
    assert call(RagConfig, ["--json"], outcome=1)[0] == 0
    assert capsys.readouterr() == ("", "")
    assert call(RagConfig, [], NumericsError("loss is nan"))[0] == 4
    assert capsys.readouterr().err == "[rank 1] error: loss is nan\n"


def test_module_is_runnable():
    done = subprocess.run(
        [sys.executable, "-m", "ragtrain", "train", "rag", "max_steps=3", "--print-config"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["loop"]["max_steps"] == 3
    assert done.stderr == ""


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m ragtrain train rag --print-config 2>{tmp_path / 'err'} | head -n 1"
    for _ in range(3):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, env=environment, timeout=60, check=True
        )
        assert done.stdout.startswith("# ragtrain train rag")
        assert (tmp_path / "err").read_text() == ""


def test_commands_are_the_models(capsys):
    group = typer.main.get_command(build_app())
    assert [name for name, _ in walk(group)] == [command.name for command in COMMANDS]
