"""Where the public sets come from: hub ids, configurations and splits, or raw files; and what each still needs.

Ids, configurations and columns are those of the hub in 2026 (no loading scripts, which datasets >= 4 refuses):
``rajpurkar/squad``, ``google-research-datasets/nq_open``, ``mandarjoshi/trivia_qa``, ``hotpotqa/hotpot_qa``,
``microsoft/ms_marco``. Records of the hub have the shapes that ``ragtrain.data.formats`` knows from raw files.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import TYPE_CHECKING, Any, cast

from ragtrain import report
from ragtrain.config.commands import DATASETS
from ragtrain.data import demo
from ragtrain.data.formats import PassageReader, QuestionFile, questions_from_rows, read_questions
from ragtrain.data.formats.files import SPLIT_NAMES, digest, question_files
from ragtrain.data.splits import group_of, rank
from ragtrain.errors import ConfigError, DataError
from ragtrain.metrics import has_answer
from ragtrain.records import Document, Passage, Question, content_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Literal

    from ragtrain.config.commands import FetchConfig

log = logging.getLogger("ragtrain")

ALL_MEMBERS = ("squad", "nq", "trivia_qa", "hotpot_qa")
_HUB_TIMEOUT_S = 10.0
_SHUFFLE_BUFFER = 10_000
#: Pages of TriviaQA become passages of so many words, and a question keeps so many of them.
_WINDOW_WORDS = 100
_MOST_WINDOWS, _MOST_GOLD_WINDOWS = 10, 5


@dataclasses.dataclass(frozen=True, slots=True)
class HubSet:
    """A set on the hub. Streamed sets are too large to be downloaded for a few hundred questions."""

    id: str
    config: str
    licence: str
    streamed: bool = False


HUB = {
    "squad": HubSet("rajpurkar/squad", "plain_text", "CC BY-SA 4.0"),
    "nq": HubSet("google-research-datasets/nq_open", "nq_open", "CC BY-SA 3.0"),
    "trivia_qa": HubSet(
        "mandarjoshi/trivia_qa", "rc.wikipedia", "Apache-2.0 (annotations); questions belong to their publishers", True
    ),
    "hotpot_qa": HubSet("hotpotqa/hotpot_qa", "distractor", "CC BY-SA 4.0"),
    "ms_marco": HubSet("microsoft/ms_marco", "v2.1", "non-commercial research only (MS MARCO terms)", True),
}


@dataclasses.dataclass(slots=True)
class Loaded:
    """One set as its source has it: questions by official split, passages that stand alone, and where all came from."""

    name: str
    licence: str
    splits: dict[str, list[Question]] = dataclasses.field(default_factory=dict)
    passages: list[Passage] = dataclasses.field(default_factory=list)
    origin: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: int = 0
    unanswered: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, split: str, questions: Iterable[Question]) -> None:
        """Take in the questions of a split; those without an answer are left out where others have one."""
        all_ = [
            dataclasses.replace(q, dataset=q.dataset or self.name, split=split, group=group_of(q)) for q in questions
        ]
        answered = [question for question in all_ if question.answers]
        if answered and len(answered) < len(all_):
            self.unanswered[split] = len(all_) - len(answered)
        self.splits[split] = answered or all_


def load(config: FetchConfig) -> list[Loaded]:
    """Read what a configuration asks for: one set, or the members of ``all``.

    Raises:
        ConfigError: sources that the set has no use for.
        DataError: a source that cannot be read or reached.
    """
    if config.dataset == "demo":
        if config.source:
            names = " ".join(name for name in DATASETS if name not in ("demo", "all"))
            raise ConfigError(
                f"the demo set is built in and reads no file, and source names {config.source[0]}",
                hint=f"say which set the file belongs to: ragtrain data fetch NAME --source FILE with NAME of {names}",
            )
        return [_demo(config.seed)]
    if config.dataset == "all":
        if not config.source:
            return [_from_hub(name, config) for name in ALL_MEMBERS]
        return [_from_files("", (path,), config) for path in config.source]
    if not config.source:
        return [_from_hub(config.dataset, config)]
    if len(config.source) > 2:
        raise ConfigError(
            f"source names {len(config.source)} files; one or two are read: training and evaluation questions",
            hint="several sets are mixed with: ragtrain data fetch all --source FILE --source FILE ...",
        )
    return [_from_files(config.dataset, config.source, config)]


def source_record(config: FetchConfig) -> list[dict[str, str]]:
    """Return name and SHA-256 of every source, which tell whether the same was asked for before.

    Raises:
        DataError: a source does not exist.
    """
    record = []
    for path in config.source:
        files = (
            [file for _, file in _split_files(path, config.split)] if path.is_dir() else question_files(path, "train")
        )
        record.append({"file": path.name, "sha256": digest(files)})
    return record


def _demo(seed: int) -> Loaded:
    built = demo.build(seed)
    loaded = Loaded("demo", demo.LICENCE, passages=list(built.passages), origin=[{"built_in": demo.ORIGIN}])
    for split, questions in (("train", built.train), ("validation", built.validation), ("test", built.test)):
        loaded.add(split, questions)
    return loaded


def _split_files(path: Path, split: str | None) -> list[tuple[str, Path]]:
    """Return the splits that a folder holds, with the first file of each."""
    found = []
    for name in (split,) if split else SPLIT_NAMES:
        try:
            found.append((name, question_files(path, name)[0]))
        except DataError:
            continue
    if not found:
        question_files(path, split or "train")  # says what the folder holds instead
    return found


def _from_files(name: str, paths: tuple[Path, ...], config: FetchConfig) -> Loaded:
    loaded = Loaded(name, HUB[name].licence if name in HUB else "see the source")
    if len(paths) == 2:
        wanted = list(zip(("train", "validation"), paths, strict=True))
        if config.split:
            wanted = [(split, path) for split, path in wanted if split == config.split]
        if not wanted:
            raise ConfigError(
                f"split is {config.split!r}, and of two sources the first is train and the second validation",
                hint=f"give the {config.split} file alone: --source {paths[1].name} --split {config.split}",
            )
    elif paths[0].is_dir():
        wanted = [(split, paths[0]) for split, _ in _split_files(paths[0], config.split)]
    else:
        wanted = [(config.split or "train", paths[0])]
    for split, path in wanted:
        read = read_questions(path, split=_split(split), skip_bad_lines=config.skip_bad_lines)
        said = read.questions[0].dataset
        if name and said in DATASETS and said != name:
            raise ConfigError(
                f"{path.name} holds {said} records ({read.format}), and the set asked for is {name}",
                hint=f"ragtrain data fetch {said} --source {path.name}",
            )
        if not loaded.name:
            # A member of `all`: by the set that its form belongs to, else by the file's name.
            loaded.name = said or _named(path)
            loaded.licence = HUB[loaded.name].licence if loaded.name in HUB else "see the source"
        if read.format == "trivia_qa":
            read = dataclasses.replace(read, questions=_with_evidence(read.questions, path))
        _take(loaded, split, read, config)
        loaded.origin.append({"split": split, "file": read.path.name, "sha256": read.sha256, "format": read.format})
    if paths[0].is_dir() and (paths[0] / "passages.jsonl").is_file():
        loaded.passages = list(PassageReader(paths[0], skip_bad_lines=config.skip_bad_lines))
    return loaded


def _named(path: Path) -> str:
    """Return the set that a file of questions and answers is of, by what such files are called; else the file's name."""
    name = path.name.split(".")[0]
    words = re.findall(r"[a-z]+", name.lower())
    calls = {"nq": ("nq", "natural"), "trivia_qa": ("trivia", "triviaqa", "tqa")}
    return next((known for known, called in calls.items() if set(called) & set(words)), name)


def _split(name: str) -> Literal["train", "validation", "test"]:
    return cast("Literal['train', 'validation', 'test']", name)


def _take(loaded: Loaded, split: str, read: QuestionFile, config: FetchConfig) -> None:
    questions = read.questions
    if read.format == "trivia_qa":
        questions = [_windowed(question, config.seed) for question in questions]
    loaded.skipped += read.skipped
    loaded.add(split, questions)


def _with_evidence(questions: list[Question], path: Path) -> list[Question]:
    """Return TriviaQA's questions with the Wikipedia pages that they name, where its evidence folder is beside them."""
    named = [question for question in questions if isinstance(question.extra.get("pages"), list)]
    if not named:
        return questions
    places = (parent / "evidence" / "wikipedia" for parent in (path.parent, path.parent.parent))
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        log.warning("%s names pages, and there is no folder evidence/wikipedia beside it to read them from", path.name)
    found = []
    for question in questions:
        pages = question.extra.get("pages", ()) if folder else ()
        documents = [_page(folder, page["title"], page["file"]) for page in pages] if folder else []
        extra = {name: value for name, value in question.extra.items() if name != "pages"}
        kept = question.documents or tuple(document for document in documents if document is not None)
        found.append(dataclasses.replace(question, documents=kept, extra=extra))
    return found


def _page(folder: Path, title: object, name: object) -> Document | None:
    file = (folder / str(name)).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    return Document(content_id(str(title), text), str(title), text) if text else None


def _windowed(question: Question, seed: int) -> Question:
    """Return a question whose long pages are cut into passages, those with an answer first taken.

    TriviaQA marks no paragraph as supporting: a window that holds an answer counts as gold (distant supervision, as in
    DPR). A cut at the first tokens of a page would lose most answers.
    """
    windows: dict[str, Document] = {}
    for page in question.documents:
        words = [match.span() for match in re.finditer(r"\S+", page.text)]
        for start in range(0, len(words), _WINDOW_WORDS):
            last = min(start + _WINDOW_WORDS, len(words)) - 1
            text = page.text[words[start][0] : words[last][1]]
            identifier = content_id(page.title, text)
            gold = has_answer(question.answers, text)
            windows[identifier] = Document(identifier, page.title, text, gold)
    order = sorted(windows.values(), key=lambda window: rank("window", seed, question.id, window.id))
    gold_windows = [window for window in order if window.is_gold][:_MOST_GOLD_WINDOWS]
    others = [window for window in order if not window.is_gold][: _MOST_WINDOWS - len(gold_windows)]
    chosen = {window.id for window in (*gold_windows, *others)}
    documents = tuple(window for window in windows.values() if window.id in chosen)
    return dataclasses.replace(question, documents=documents)


def _from_hub(name: str, config: FetchConfig) -> Loaded:
    place = HUB[name]
    official = ("train", "validation")
    if config.split and config.split not in official:
        raise ConfigError(
            f"{name} has no {config.split} split with answers on the hub; it has {' and '.join(official)}",
            hint=f"choose one of them, or read a file: --source FILE --split {config.split}",
        )
    revision = _revision(place.id)
    loaded = Loaded(name, place.licence)
    for split in (config.split,) if config.split else official:
        rows = _rows(place, split, revision, config)
        log.info("reading %s (%s), split %s, from the hub", place.id, place.config, split)
        read = questions_from_rows(rows, f"{place.id}/{split}", skip_bad_lines=config.skip_bad_lines)
        _take(loaded, split, read, config)
        entry = {"split": split, "hub": place.id, "config": place.config, "revision": revision or "as cached"}
        loaded.origin.append({**entry, "format": read.format})
    return loaded


def _unreachable(hub_id: str, error: Exception) -> DataError:
    name = next(name for name, place in HUB.items() if place.id == hub_id)
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(
        f"the hub's data set {hub_id} cannot be read: {reason[0]}",
        hint=f"read the set's raw files instead: ragtrain data fetch {name} --source TRAIN [--source EVALUATION]; what is in the "
        "hub's cache is read with HF_HUB_OFFLINE=1; the demo set needs no network: ragtrain data fetch demo",
    )


def _revision(hub_id: str) -> str | None:
    """Return the commit that the set's main branch is at, or None offline, where the cache has what it has."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return huggingface_hub.HfApi().dataset_info(hub_id, timeout=_HUB_TIMEOUT_S).sha
    except Exception as error:
        raise _unreachable(hub_id, error) from error


def _rows(place: HubSet, split: str, revision: str | None, config: FetchConfig) -> Iterable[Mapping[str, Any]]:
    import datasets

    if not report.on_terminal():
        datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(place.id, place.config, split=split, revision=revision, streaming=place.streamed)
        if place.streamed and config.num_examples:
            # Twice as many as asked for: questions without an answer and repetitions fall away.
            loaded = loaded.shuffle(seed=config.seed, buffer_size=_SHUFFLE_BUFFER).take(2 * config.num_examples + 100)
        yield from loaded
    except Exception as error:
        raise _unreachable(place.id, error) from error
