"""Each alarm is provoked, two of them in real runs, and a healthy stream raises none."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ragtrain import loop
from ragtrain.config.commands import RagConfig
from ragtrain.config.load import load_config
from ragtrain.data.prompts import CUTS
from ragtrain.errors import NumericsError
from ragtrain.models import rag as rag_model
from ragtrain.runs import RunFolder, config_hash
from ragtrain.train import alarms, rag
from ragtrain.train.alarms import known, watch

QUESTIONS, N_DOCS, DIM = 64, 4, 8
FROZEN = {"generator": 1e-4, "question_encoder": 0.0}


def config_of(output: Path, **changes: object) -> RagConfig:
    settings = {"n_docs": N_DOCS, "logging_steps": 2, "max_question_tokens": 6, "output_dir": output, **changes}
    return load_config(RagConfig, flags=settings).config


def watch_of(output: Path, **changes: object) -> alarms.Watch:
    config = config_of(output, **changes)
    return alarms.Watch(RunFolder.create(output, "rag", config.model_dump(mode="json")), config)


def step_of(index: int, **changes: object) -> loop.Step:
    healthy = loop.Step(
        index=index, epoch=0.1, loss=2.0, parts={}, weight=1.0, grad_norm=1.0, seconds=1.0, examples=QUESTIONS,
        learning_rates={"generator": 1e-4, "question_encoder": 1e-5}, examples_per_s=1.0,
        group_grad_norms={"generator": 1.0, "question_encoder": 0.1},
    )  # fmt: skip
    return dataclasses.replace(healthy, **changes)


def batch_of(**changes: Tensor | None) -> dict[str, Tensor | None]:
    """A micro-batch as a healthy run has it: many passages, different questions, a posterior that says something."""
    return {
        "ids": torch.randint(1000, (QUESTIONS, N_DOCS)),
        "mask": torch.ones(QUESTIONS, N_DOCS, dtype=torch.bool),
        "queries": torch.randn(QUESTIONS, DIM) + 3,
        "prior": torch.softmax(torch.randn(QUESTIONS, N_DOCS), 1),
        "posterior": torch.softmax(2 * torch.randn(QUESTIONS, N_DOCS), 1),
        "question_mask": torch.ones(QUESTIONS, 5, dtype=torch.long),
        "target_tokens": torch.full((QUESTIONS,), 3),
        **changes,
    }


Change = Callable[[], dict[str, object]]


def told(
    looking: alarms.Watch, steps: int, batch: Change = dict, step: Change = dict, first: int = 1
) -> list[alarms.Alarm]:
    """Show so many steps of one micro-batch each, with what is changed in each."""
    found = []
    for index in range(first, first + steps):
        looking.saw(**batch_of(**batch()))
        found += looking.after(step_of(index, **step()))
    return found


def names(found: list[alarms.Alarm]) -> list[str]:
    return [alarm.name for alarm in found]


# ---- what is raised


def test_a_healthy_run_raises_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run", on_alarm="stop")
    falling = iter(3.0 * 0.99**i + 0.3 * torch.rand(()).item() for i in range(300))
    assert told(looking, 300, step=lambda: {"loss": next(falling)}) == []
    assert not (tmp_path / "run" / "alarms.jsonl").exists()
    assert looking.after(step_of(301, is_last=True)) == []


def same_passages() -> dict[str, object]:
    return {"ids": torch.arange(N_DOCS).expand(QUESTIONS, N_DOCS)}


def same_queries() -> dict[str, object]:
    return {"queries": torch.ones(QUESTIONS, DIM) + 0.01 * torch.randn(QUESTIONS, DIM)}


COLLAPSES = {"retrieval-collapse": same_passages, "query-collapse": same_queries}


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_collapse_is_measured_against_the_beginning(name: str, tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    assert told(looking, 4) == []
    (alarm,) = told(looking, 4, COLLAPSES[name], first=5)
    assert (alarm.name, alarm.step) == (name, 6)
    assert {"distinct", "spread", "distinct_at_first", "spread_at_first"} == alarm.figures.keys()
    key = "distinct" if name == "retrieval-collapse" else "spread"
    assert alarm.figures[key] < known.COLLAPSE_SHARE * alarm.figures[f"{key}_at_first"]


@pytest.mark.parametrize("name", COLLAPSES)
def test_what_was_so_from_the_beginning_is_no_collapse(name: str, tmp_path: Path) -> None:
    assert told(watch_of(tmp_path / "run"), 8, COLLAPSES[name]) == []


def test_the_figures_of_a_window_are_those_of_their_definitions(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    batches = [batch_of() for _ in range(2)]
    batches[0]["mask"][:, -1] = False
    batches[0]["posterior"][:, -1] = batches[0]["prior"][:, -1] = 0.0
    for batch in batches:
        looking.saw(**batch)
    window = looking._collector.take()
    queries = torch.cat([batch["queries"] for batch in batches])
    ids = [i for batch in batches for i in batch["ids"][batch["mask"]].tolist()]
    prior, posterior = (torch.cat([batch[key] for batch in batches]) for key in ("prior", "posterior"))
    assert window.distinct == len(set(ids)) / (2 * QUESTIONS * N_DOCS)
    variance = queries.var(0, correction=0).sum() / queries.square().sum(1).mean()
    assert window.spread == pytest.approx(variance.item(), rel=1e-4)
    kl = torch.where(posterior > 0, posterior * (posterior / prior).log(), 0).sum(1).mean()
    assert window.kl == pytest.approx(kl.item(), rel=1e-4)
    assert window.missing == 1 / (2 * N_DOCS)
    assert looking._collector.take() is None


def untaught() -> dict[str, object]:
    prior = torch.softmax(torch.randn(QUESTIONS, N_DOCS), 1)
    return {"prior": prior, "posterior": prior}


def contradicted() -> dict[str, object]:
    prior = torch.tensor([0.97, 0.01, 0.01, 0.01]).expand(QUESTIONS, N_DOCS)
    return {"prior": prior, "posterior": prior.flip(1)}


UNMOVED = {"untaught-retriever": untaught, "contradicted-retriever": contradicted}


@pytest.mark.parametrize("name", UNMOVED)
def test_a_posterior_that_stays_at_either_end_is_told(name: str, tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run", on_alarm="stop")  # harmless: it does not stop
    windows = 2 * (known.KL_WINDOWS - 1)
    assert told(looking, windows, UNMOVED[name]) == []
    assert told(looking, 2, first=windows + 1) == []  # one good window between
    found = told(looking, 2 * known.KL_WINDOWS, UNMOVED[name], first=windows + 3)
    assert names(found) == [name]


@pytest.mark.parametrize("name", UNMOVED)
def test_a_frozen_retriever_needs_no_teaching(name: str, tmp_path: Path) -> None:
    frozen = {"learning_rates": FROZEN, "group_grad_norms": {"generator": 1.0, "question_encoder": 0.0}}
    assert told(watch_of(tmp_path / "run"), 20, UNMOVED[name], lambda: frozen) == []
    alone = {"learning_rates": {"generator": 1e-4}, "group_grad_norms": {"generator": 1.0}}
    assert told(watch_of(tmp_path / "other"), 20, UNMOVED[name], lambda: alone) == []


@pytest.mark.parametrize("tower", known.RETRIEVER_GROUPS)
def test_a_retriever_without_gradient_is_told(tower: str, tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    dead = {"learning_rates": {tower: 1e-5}, "group_grad_norms": {tower: 1e-13}}
    assert told(looking, 2, step=lambda: dead) == []
    alive = {**dead, "group_grad_norms": {tower: 0.1}}
    assert told(looking, 1, step=lambda: alive, first=3) == []
    (alarm,) = told(looking, 5, step=lambda: dead, first=4)
    assert alarm.step == 6
    assert alarm.name == "zero-gradient"
    assert tower in alarm.message


def test_a_loss_that_explodes_is_told_and_a_single_odd_batch_is_not(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    assert told(looking, 30) == []
    assert told(looking, 2, step=lambda: {"loss": 50.0}, first=31) == []
    assert told(looking, 5, first=33) == []
    (alarm,) = told(looking, 5, step=lambda: {"loss": 7.0}, first=38)
    assert (alarm.name, alarm.step) == ("exploding-loss", 40)
    assert alarm.figures == {"loss": 7.0, "median": 2.0}


def test_a_loss_of_nearly_nothing_may_triple(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    assert told(looking, 40, step=lambda: {"loss": 0.01}) + told(
        looking, 40, step=lambda: {"loss": 0.2}, first=41
    ) == []  # fmt: skip


def test_a_loss_that_rises_steadily_is_told(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    rising = iter(1.0 + 0.02 * i + 0.2 * torch.rand(()).item() for i in range(120))
    found = told(looking, 120, step=lambda: {"loss": next(rising)})
    assert names(found) == ["rising-loss"]
    assert found[0].step == known.LOSS_STEPS


def cut_for_the_generator() -> dict[str, object]:
    CUTS.inputs += 100
    CUTS.questions += 5
    return {}


def masked(share: float) -> Tensor:
    mask = torch.ones(QUESTIONS, N_DOCS, dtype=torch.bool)
    mask[: round(share * QUESTIONS), -1] = False
    return mask


DATA: dict[str, Change] = {
    "missing-passages": lambda: {"mask": masked(0.5), "ids": torch.randint(999, (QUESTIONS, N_DOCS)).where(masked(0.5), -1)},
    "empty-targets": lambda: {"target_tokens": torch.tensor([0] + [2] * (QUESTIONS - 1))},
    "cut-questions": lambda: {"question_mask": (torch.arange(6) < torch.randint(5, 7, (QUESTIONS, 1))).long()},
    "cut-generator-questions": cut_for_the_generator,
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_troubles_of_the_data_are_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUTS, "inputs", CUTS.inputs)
    monkeypatch.setattr(CUTS, "questions", CUTS.questions)
    looking = watch_of(tmp_path / "run", on_alarm="stop")  # harmless: it does not stop
    (alarm,) = told(looking, 8, DATA[name])
    assert (alarm.name, alarm.step) == (name, 2)
    assert re.search(r"\d", alarm.message)


def test_a_short_run_is_looked_at_when_it_ends(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    found = told(looking, 1, DATA["empty-targets"], lambda: {"is_last": True, "examples": 2})
    assert names(found) == ["empty-targets"]


# ---- how it is told


def test_an_alarm_comes_once_and_again_after_it_was_quiet(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    empty = DATA["empty-targets"]
    assert names(told(looking, 20, empty)) == ["empty-targets"]
    assert told(looking, 2 * (known.QUIET_WINDOWS - 1), first=21) == []
    assert told(looking, 4, empty, first=101) == []  # not quiet for long enough
    assert told(looking, 2 * known.QUIET_WINDOWS, first=201) == []
    assert names(told(looking, 4, empty, first=301)) == ["empty-targets"]


def test_an_alarm_is_logged_with_its_remedy_and_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ragtrain"):
        (alarm,) = told(watch_of(tmp_path / "run"), 4, DATA["empty-targets"])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "alarm after step 2, empty-targets: 2 of 128 targets" in record.getMessage()
    assert alarms.REMEDIES["empty-targets"] in record.getMessage()
    (row,) = RunFolder.open(tmp_path / "run").read_alarms()
    assert row == {
        "name": "empty-targets", "step": 2, "message": alarm.message, "figures": {"questions": 2, "of": 128},
        "remedy": alarms.REMEDIES["empty-targets"], "harmful": False,
    }  # fmt: skip


def test_every_alarm_has_a_remedy_and_names_flags_that_exist() -> None:
    fields = {
        name for section in RagConfig().model_dump().values() for name in section
    }  # field names are unique within a command
    assert alarms.REMEDIES.keys() >= known.HARMFUL
    table = alarms.__doc__ or ""
    for name, remedy in alarms.REMEDIES.items():
        assert f"\n{name} {'(!)' if name in known.HARMFUL else ''}" in table, name
        for flag in re.findall(r"--([a-z-]+)", remedy + table):
            assert flag.removeprefix("no-").replace("-", "_") in fields, flag


def test_stop_ends_a_ruined_run_with_the_command_that_goes_on(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run", on_alarm="stop")
    told(looking, 4)
    with pytest.raises(NumericsError, match="after step 6 by the alarm retrieval-collapse") as caught:
        told(looking, 4, same_passages, first=5)
    assert caught.value.exit_code == 4
    assert "no checkpoint was due yet" in str(caught.value.hint)
    assert [row["name"] for row in RunFolder.open(tmp_path / "run").read_alarms()] == ["retrieval-collapse"]
    saved = tmp_path / "run" / "checkpoints" / "step-000004"
    saved.mkdir(parents=True)
    (saved.parent / "latest").symlink_to(saved.name)
    looking = watch_of(tmp_path / "run", on_alarm="stop")
    with pytest.raises(NumericsError) as caught:  # and a resumed run still knows what it was at first
        told(looking, 2, same_passages, first=7)
    hint = str(caught.value.hint)
    assert "the last checkpoint is step-000004" in hint
    assert f"--config {tmp_path / 'run' / 'config.yaml'} --resume latest --on-alarm warn" in hint


def test_going_on_with_warnings_is_the_same_run(tmp_path: Path) -> None:
    stop, warn = (config_of(tmp_path, on_alarm=value).model_dump(mode="json") for value in ("stop", "warn"))
    assert config_hash(stop) == config_hash(warn)


def test_alarms_of_steps_that_are_done_again_are_forgotten(tmp_path: Path) -> None:
    looking = watch_of(tmp_path / "run")
    told(looking, 8, DATA["empty-targets"])
    told(looking, 8, same_passages, first=9)
    run = RunFolder.open(tmp_path / "run")
    assert [row["step"] for row in run.read_alarms()] == [2, 10]
    again = watch_of(tmp_path / "run")
    assert told(again, 2, first=9) == []
    assert [row["step"] for row in run.read_alarms()] == [2]


def test_all_processes_learn_what_one_of_them_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = watch_of(tmp_path / "run", on_alarm="stop")
    looking._world = 2
    other = alarms.Alarm("query-collapse", 4, "seen by the other process", {})
    gathered: list[list[alarms.Alarm]] = []

    def gather(mine: list[alarms.Alarm]) -> list[alarms.Alarm]:
        gathered.append(mine)
        return [*mine, other, other]

    monkeypatch.setattr(watch, "gather_object", gather)
    told(looking, 3)
    assert gathered == []  # two processes see 32 questions a step each
    with pytest.raises(NumericsError, match="seen by the other process"):
        told(looking, 1, first=4)
    assert gathered == [[]]
    assert len(RunFolder.open(tmp_path / "run").read_alarms()) == 1


# ---- in real runs


def real_config(corner: Path, output: Path, **changes: object) -> RagConfig:
    settings = {
        "train_data": corner, "n_docs": 2, "batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 8,
        "learning_rate": 1e-5, "logging_steps": 1, "save_steps": 1, "output_dir": output, "trackers": (),
        "max_val_samples": 1, **changes,
    }  # fmt: skip
    return load_config(RagConfig, flags=settings).config


def test_detached_scores_end_a_real_run(corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug of trainers that build their scores from numbers: the retriever is trained, and learns nothing."""
    scores = rag_model.doc_scores
    monkeypatch.setattr(rag_model, "doc_scores", lambda query, vectors: scores(query, vectors).detach())
    with pytest.raises(NumericsError, match="zero-gradient: the question_encoder") as caught:
        rag.run(real_config(corner, tmp_path / "run", on_alarm="stop"))
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "alarms.jsonl").read_text().splitlines()]
    assert row["name"] == "zero-gradient"
    assert row["figures"] == {"grad_norm": 0.0}
    assert f"the last checkpoint is step-{row['step']:06d}" in str(caught.value.hint)


def test_a_huge_rate_collapses_a_real_retriever(corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "WINDOW_QUESTIONS", 16)
    wild = {"retriever_learning_rate": 1.0, "warmup_steps": 4, "max_grad_norm": 0.0}
    rag.run(real_config(corner, tmp_path / "wild", **wild))
    found = {row["name"] for row in RunFolder.open(tmp_path / "wild").read_alarms()}
    assert {"retrieval-collapse", "query-collapse"} & found


def test_an_ordinary_real_run_raises_nothing(corner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "WINDOW_QUESTIONS", 16)
    rag.run(real_config(corner, tmp_path / "tame", on_alarm="stop"))
    assert not (tmp_path / "tame" / "alarms.jsonl").exists()
