from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ragtrain import metrics
from ragtrain.config.commands.sft import SftContextConfig, SftDataConfig
from ragtrain.data.sft.conditions import samples_for
from ragtrain.data.sft.contexts import ContextMaker
from ragtrain.data.sft.distractors import NOT_FOUND, Distractors, gold_of
from ragtrain.data.sft.examples import read_examples
from ragtrain.data.sft.records import Example, Sample
from ragtrain.data.sft.shots import Shots
from ragtrain.errors import ConfigError
from ragtrain.records import Document

N_DOCS = 5


def row(i: int, *, hard: int = 10, gold: bool = True, **changes: Any) -> Example:
    """A row as a search leaves it: wrong passages, the gold one, one that holds the answer and is not gold, a copy."""
    answer = f"answer{i}"
    wrong = [Document(f"r{i}h{j}", "", f"Row {i} finds passage {j}.", False, 9.0 - j) for j in range(hard)]
    right = Document(f"r{i}g", "", f"It is {answer}, says row {i}.", True, 8.5)
    other = Document(f"r{i}a", "", f"Another text with {answer}.", False, 8.4)
    copies = [Document(f"r{i}c", "", wrong[0].text.upper(), False, 8.3)] if wrong else []
    found = [*wrong[:1], *([right] if gold else []), other, *copies, *wrong[1:]]
    example = Example(
        f"row{i}", f"Question {i}?", (answer,), (answer,), tuple(found), frozenset({right.id} if gold else ()),
        group=f"g{i // 2}",
    )  # fmt: skip
    return dataclasses.replace(example, **changes)


ROWS = [row(i) for i in range(120)]


def maker(rows: list[Example], *, seed: int = 0, choice: Any = "first", **settings: Any) -> ContextMaker:
    return ContextMaker(rows, SftContextConfig(**{"n_docs": N_DOCS, **settings}), seed=seed, answer_choice=choice)


def raft_samples(epochs: int = 40, rows: list[Example] = ROWS, **settings: Any) -> list[tuple[Example, Sample]]:
    made = maker(rows, raft=True, **settings)
    return [
        (rows[made.origin(i)], sample) for epoch in range(epochs) for i, sample in enumerate(made.samples(epoch))
    ]  # fmt: skip


def held(example: Example, sample: Sample) -> list[bool]:
    return [document.id in example.gold for document in sample.documents]


# --- concat and separate


def test_the_best_passages_stand_in_order_of_rank() -> None:
    made = maker(ROWS, n_docs=3)
    samples = made.samples(0)
    assert [sample.documents for sample in samples] == [example.documents[:3] for example in ROWS]
    assert {sample.ranks for sample in samples} == {(0, 1, 2)}
    assert [sample.target for sample in samples] == [example.answers[0] for example in ROWS]
    assert made.static
    assert samples == made.samples(7)
    assert [made.origin(i) for i in range(len(samples))] == list(range(len(ROWS)))


def test_closed_book_and_rows_without_passages() -> None:
    assert all(sample.documents == () for sample in maker(ROWS, n_docs=0).samples(0))
    bare = [dataclasses.replace(ROWS[0], documents=(), gold=frozenset())]
    for mode in ("concat", "separate"):
        (sample,) = maker(bare, context_mode=mode).samples(0)
        assert (sample.id, sample.documents, sample.ranks) == ("row0", (), ())


def test_a_gold_passage_that_was_not_found_is_not_shown() -> None:
    lost = Document("lost", "", "Gold that no search found.", True, NOT_FOUND)
    example = dataclasses.replace(row(0, hard=2, gold=False), gold=frozenset({"lost"}))
    example = dataclasses.replace(example, documents=(*example.documents, lost))
    (sample,) = maker([example], n_docs=9).samples(0)
    assert lost.id not in {document.id for document in sample.documents}
    samples = maker([example, *ROWS], raft=True, raft_p=1.0).samples(0)
    (shown,) = [document for document in samples[0].documents if document.id == "lost"]
    assert shown.score is None  # the mark stays inside


def test_separate_makes_a_sample_of_each_passage() -> None:
    made = maker([ROWS[0], row(1, hard=1)], context_mode="separate")
    samples = made.samples(0)
    assert [sample.id for sample in samples[:5]] == ["row0#0", "row0#1", "row0#2", "row0#3", "row0#4"]
    assert [made.origin(i) for i in range(len(samples))] == [0] * 5 + [1] * 4  # the second row has four passages
    assert [sample.documents for sample in samples[:5]] == [(each,) for each in ROWS[0].documents[:5]]
    assert {sample.ranks for sample in samples} == {(0,)}
    names = [sample.id for sample in maker([ROWS[0], row(1, id="row0#0")], context_mode="separate").samples(0)]
    assert len(set(names)) == len(names)


def test_finished_prompts_stay_as_they_are() -> None:
    documents = (Document("a", "", "one"), Document("b", "", "two"))
    example = Example("1", "q?", ("x",), ("x",), documents, finished="one two q?")
    (sample,) = maker([example], n_docs=1).samples(0)
    assert (sample.finished, sample.documents, sample.ranks, sample.shots) == ("one two q?", documents, (0, 1), ())


@pytest.mark.parametrize(
    ("finished", "settings", "message"),
    [
        (False, {"raft": True, "n_docs": 0}, "raft mixes passages, and n_docs is 0"),
        (False, {"raft": True, "context_mode": "separate"}, "context_mode=separate parts them"),
        (True, {"raft": True, "n_shots": 2}, "1 rows bring a finished prompt, which raft, n_shots cannot change"),
        (True, {"context_mode": "separate"}, "which context_mode=separate cannot change any more"),
        (True, {"index": Path("index")}, "which index cannot change"),
    ],
)
def test_what_does_not_go_together_is_refused(finished: bool, settings: dict[str, Any], message: str) -> None:
    rows = [dataclasses.replace(ROWS[0], finished="p" if finished else None)]
    with pytest.raises(ConfigError, match=message):
        maker(rows, **settings)


# --- RAFT


def test_the_gold_passage_stays_with_the_probability_asked_for() -> None:
    for p in (0.0, 0.3, 0.8, 1.0):
        inside = [any(held(*pair)) for pair in raft_samples(raft_p=p)]
        # Four standard deviations of the binomial distribution; without spread the share is exact.
        assert abs(sum(inside) / len(inside) - p) <= 4 * math.sqrt(p * (1 - p) / len(inside))
    # Rows and epochs differ in it independently: the number of epochs with gold is binomial for each row.
    made = maker(ROWS, raft=True, raft_p=0.5)
    counts = [0] * len(ROWS)
    for epoch in range(20):
        for i, sample in enumerate(made.samples(epoch)):
            counts[i] += any(held(ROWS[i], sample))
    variance = sum((count - 10) ** 2 for count in counts) / len(counts)
    assert variance == pytest.approx(20 * 0.25, rel=0.5)


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_the_gold_passage_stands_in_any_place_alike() -> None:
    places = Counter(held(*pair).index(True) for pair in raft_samples(raft_p=1.0))
    # 18.47 is the 99.9 % quantile of chi-square with 4 degrees of freedom.
    assert chi_square([places[i] for i in range(N_DOCS)]) < 18.47
    # The test finds what it is for: always first, as RAG-FiT has it.
    assert chi_square([len(ROWS) * 40, 0, 0, 0, 0]) > 18.47


def test_no_probe_tells_from_places_and_counts_where_the_gold_passage_is() -> None:
    """A probe that learns from half of the epochs where the gold passage stands, asked about the other half."""
    pairs = raft_samples(epochs=60, raft_p=0.5)
    half = len(pairs) // 2
    learnt = Counter(place for pair in pairs[:half] for place, gold in enumerate(held(*pair)) if gold)
    # Scores of places, and whether the passage there is gold: the area under the curve is 1/2 where nothing leaks.
    positive: Counter[int] = Counter()
    negative: Counter[int] = Counter()
    for pair in pairs[half:]:
        for place, gold in enumerate(held(*pair)):
            (positive if gold else negative)[learnt[place]] += 1
    wins = sum(
        n * m * (1.0 if a > b else 0.5 if a == b else 0.0)
        for (a, n), (b, m) in itertools.product(positive.items(), negative.items())
    )
    assert wins / (positive.total() * negative.total()) == pytest.approx(0.5, abs=0.03)
    # And by the number of passages, or by ids: as many in both cases, and the hardest of them are met in both.
    assert {len(sample.documents) for _, sample in pairs} == {N_DOCS}


@pytest.mark.parametrize("hard", [10, 4, 2, 0])
def test_the_number_of_passages_is_constant_and_none_stands_twice(hard: int) -> None:
    rows = [row(i, hard=hard) for i in range(40)]
    for example, sample in raft_samples(epochs=5, rows=rows, raft_p=0.5):
        texts = [document.text.casefold() for document in sample.documents]
        assert len(texts) == len(set(texts)) == N_DOCS
        assert len({document.id for document in sample.documents}) == N_DOCS
        for document in sample.documents:
            if document.id not in example.gold:
                assert not metrics.has_answer(example.answers, document.text)
        own = sum(document.id.startswith(f"r{example.id[3:]}h") for document in sample.documents)
        assert own == min(hard, N_DOCS - any(held(example, sample)))  # its own hard negatives come first
        assert sorted(sample.ranks) == list(range(N_DOCS))


def test_too_few_passages_are_too_few_with_and_without_the_gold_one() -> None:
    rows = [row(i, hard=1) for i in range(2)]  # one hard negative, and those of the other row: its two wrong texts
    for example in rows:
        counts = {
            (any(held(each, sample)), len(sample.documents))
            for each, sample in raft_samples(epochs=30, rows=rows, raft_p=0.5)
            if each is example
        }
        assert {gold for gold, _ in counts} == {True, False}
        assert len({number for _, number in counts}) == 1
    alone = [row(0, hard=0)]
    alone[0] = dataclasses.replace(alone[0], documents=alone[0].documents[:1])
    assert all(len(s.documents) == 1 and any(held(e, s)) for e, s in raft_samples(5, alone, raft_p=0.0))


def test_ranks_let_distractors_give_way_before_the_gold_passage() -> None:
    for example, sample in raft_samples(epochs=3, raft_p=1.0):
        by_rank = [
            document for _, document in sorted(zip(sample.ranks, sample.documents, strict=True), key=lambda p: p[0])
        ]
        assert by_rank[0].id in example.gold
        scores = [document.score for document in by_rank[1:]]
        assert scores == sorted(scores, reverse=True)


def test_an_epoch_depends_on_the_seed_the_epoch_and_the_row_only() -> None:
    made = maker(ROWS, raft=True)
    first, second = made.samples(0), made.samples(1)
    assert not made.static
    assert len(first) == len(second) == len(made)
    assert sum(a.documents != b.documents for a, b in zip(first, second, strict=True)) > 0.9 * len(ROWS)
    assert maker(ROWS, raft=True).samples(1) == second  # without the epochs before
    assert maker(ROWS, raft=True, seed=1).samples(0) != first
    # Rows with hard negatives enough get the same, whatever stands around them.
    backwards = maker(ROWS[::-1], raft=True).samples(0)[::-1]
    assert backwards == first
    few = maker(ROWS[:7], raft=True).samples(0)
    assert few == first[:7]


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    code = (
        "from ragtrain.config.commands.sft import SftContextConfig\n"
        "from ragtrain.data.sft.contexts import ContextMaker\n"
        "from ragtrain.data.sft.records import Example\n"
        "from ragtrain.records import Document\n"
        "rows = [Example(str(i), f'q{i}', ('a',), ('a', 'b', 'c'), tuple(Document(f'{i}.{j}', '', f't {i} {j}', j == 0)\n"
        "        for j in range(4)), frozenset({f'{i}.0'})) for i in range(9)]\n"
        "made = ContextMaker(rows, SftContextConfig(raft=True, n_docs=6, n_shots=2), seed=3, answer_choice='random')\n"
        "print(made.samples(2))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, cwd=tmp_path, text=True,
            capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1
    assert "Sample(" in outputs.pop()


def test_abstaining_is_the_target_where_the_gold_passage_was_left_out() -> None:
    pairs = raft_samples(epochs=3, raft_p=0.5, abstain_target="I do not know")
    for example, sample in pairs:
        assert sample.target == (example.answers[0] if any(held(example, sample)) else "I do not know")
    assert len({sample.target == "I do not know" for _, sample in pairs}) == 2


def test_several_gold_passages_stay_or_go_together() -> None:
    rows = []
    for example in ROWS[:40]:
        more = Document(f"{example.id}-second", "", f"A second clue for {example.id}.", True, 1.0)
        rows.append(
            dataclasses.replace(example, documents=(*example.documents, more), gold=example.gold | {more.id})
        )  # fmt: skip
    counts = Counter(sum(held(*pair)) for pair in raft_samples(epochs=5, rows=rows, raft_p=0.5))
    assert set(counts) == {0, 2}
    assert {sum(held(*pair)) for pair in raft_samples(1, rows, raft_p=1.0, n_docs=1)} == {1}


def test_without_gold_passages_the_best_one_with_an_answer_stands_in() -> None:
    rows = [row(i, gold=False) for i in range(20)]
    made = maker(rows, raft=True, raft_p=1.0)
    for example, sample in zip(rows, made.samples(0), strict=True):
        answered = [document.id for document in sample.documents if metrics.has_answer(example.answers, document.text)]
        assert answered == [f"r{example.id[3:]}a"]
    assert (made.describe()["stand_ins"], made.describe()["without_gold"], made.describe()["gold"]) == (20, 0, 1.0)
    lost = dataclasses.replace(rows[0], answers=("nowhere",))
    assert maker([*rows[1:], lost], raft=True).describe()["without_gold"] == 1
    with pytest.raises(ConfigError, match="--raft needs gold passages"):
        maker([lost], raft=True)


def test_a_distractor_of_another_row_takes_no_id_of_this_one() -> None:
    """Rows that number their passages from 0 must not see another's passage 0 as their own gold one."""
    rows = [
        Example(f"row{i}", f"q{i}?", (f"a{i}",), (f"a{i}",),
                (Document("0", "", f"Here is a{i}.", True), Document("1", "", f"Nothing in {i}.", False)), frozenset({"0"}))
        for i in range(10)
    ]  # fmt: skip
    for example, sample in raft_samples(epochs=4, rows=rows, raft_p=0.5):
        inside = [document for document in sample.documents if document.id in example.gold]
        assert all(metrics.has_answer(example.answers, document.text) for document in inside)
        assert {document.is_gold for document in sample.documents if document not in inside} == {False}
        assert len({document.id for document in sample.documents}) == len(sample.documents) == N_DOCS


def test_what_was_wrong_elsewhere_is_found_by_these_tests() -> None:
    """RAFT as RAG-FiT writes it: gold first, more passages with it than without; the checks above tell them apart."""
    theirs = [
        [*(gold_of(example) if i % 2 else ()), *Distractors(ROWS, 20).hard(i)[:N_DOCS]] for i, example in enumerate(ROWS)
    ]  # fmt: skip
    assert len({len(documents) for documents in theirs}) == 2
    places = Counter(
        [document.id in example.gold for document in documents].index(True)
        for example, documents in zip(ROWS, theirs, strict=True)
        if any(document.id in example.gold for document in documents)
    )
    assert chi_square([places[i] for i in range(N_DOCS)]) > 18.47


# --- targets and solved examples


def test_a_reference_is_drawn_anew_each_epoch() -> None:
    several = [dataclasses.replace(example, targets=("a", "b", "c")) for example in ROWS]
    made = maker(several, choice="random")
    assert not made.static
    targets = [[sample.target for sample in made.samples(epoch)] for epoch in range(30)]
    counts = Counter(target for epoch in targets for target in epoch)
    assert chi_square([counts[target] for target in "abc"]) < 13.82  # 99.9 % with 2 degrees of freedom
    assert targets[0] != targets[1]
    assert targets[1] == [sample.target for sample in maker(several, choice="random").samples(1)]
    assert [sample.documents for sample in made.samples(0)] == [sample.documents for sample in made.samples(1)]
    assert maker(several).static
    assert maker(ROWS, choice="random").static  # one reference each: there is nothing to draw
    apart = maker(several, choice="random", context_mode="separate", n_docs=3).samples(0)
    assert all(len({sample.target for sample in apart[i : i + 3]}) == 1 for i in range(0, len(apart), 3))


def test_solved_examples_are_others() -> None:
    made = maker(ROWS, n_shots=3)
    assert made.static
    samples = made.samples(0)
    assert samples == made.samples(1)
    for example, sample in zip(ROWS, samples, strict=True):
        assert len({shot.question for shot in sample.shots}) == 3
        near = {other.question for other in ROWS if other.group == example.group}
        assert not near & {shot.question for shot in sample.shots}
        for shot in sample.shots:
            (solved,) = [other for other in ROWS if other.question == shot.question]
            assert (shot.target, shot.documents) == (solved.targets[0], gold_of(solved))
    assert maker(ROWS, n_shots=3, seed=1).samples(0) != samples
    assert all(shot.documents == () for sample in maker(ROWS, n_shots=2, n_docs=0).samples(0) for shot in sample.shots)
    mixed = maker(ROWS, n_shots=3, raft=True)
    assert [sample.shots for sample in mixed.samples(0)] != [sample.shots for sample in mixed.samples(1)]
    assert mixed.samples(1) == maker(ROWS, n_shots=3, raft=True).samples(1)


def test_solved_examples_never_ask_the_same(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(i, question="Who is it?" if i % 2 else f"Question {i}?", group="") for i in range(12)]
    for example, sample in zip(rows, maker(rows, n_shots=4).samples(0), strict=True):
        asked = [shot.question for shot in sample.shots]
        assert len(set(asked)) == len(asked)
        assert example.question not in asked
    same = [row(i, group="one") for i in range(5)]  # nothing but one group: better these than none
    assert all(len(sample.shots) == 4 for sample in maker([*same, row(9)], n_shots=4).samples(0)[:5])
    shared = [dataclasses.replace(example, documents=ROWS[0].documents, gold=ROWS[0].gold) for example in same]
    assert all(sample.shots == () for sample in maker(shared, n_shots=2).samples(0))  # all on one gold passage
    maker(same[:2], n_shots=2)
    assert "2 training rows do not give 2 solved examples to each question" in caplog.text


@pytest.mark.parametrize("count", [2, 201, 500])
def test_solved_examples_from_sets_of_any_size(count: int) -> None:
    rows = [row(i) for i in range(count)]
    shots = Shots(rows, 10, 0, n_docs=1)
    # The other row of two is of the same group: better than none.
    assert {len(shots.draw(example)) for example in rows[:20]} == {min(10, count - 1)}


def test_solved_examples_of_validation_rows_are_training_rows() -> None:
    train, validation = ROWS[:60], ROWS[60:]
    config = SftContextConfig(n_docs=2, n_shots=2)
    samples = ContextMaker(validation, config, seed=0, shots_from=train).samples(0)
    asked = {example.question for example in train}
    assert all({shot.question for shot in sample.shots} <= asked and len(sample.shots) == 2 for sample in samples)


# --- what the plan says, and the conditions of evaluation


def test_the_plan_says_what_stands_in_prompts() -> None:
    about = maker(ROWS).describe()
    assert (about["rows"], about["samples"], about["looked_at"], about["passages"]) == (120, 120, 120, 5.0)
    assert (about["gold"], about["gold_first"], about["answer"]) == (1.0, 0.0, 1.0)
    about = maker(ROWS, n_docs=1).describe()
    assert (about["gold"], about["answer"]) == (0.0, 0.0)
    about = maker(ROWS, raft=True, raft_p=0.8).describe()
    assert about["gold"] == about["answer"] == pytest.approx(0.8, abs=0.15)
    assert maker([row(0, gold=False)]).describe()["gold"] is None
    assert maker(ROWS * 30, n_docs=1).describe()["looked_at"] == 1200  # of 3,600, evenly spread


def test_conditions() -> None:
    closed = samples_for(ROWS, "closed-book", 5, 0)
    assert all(sample.documents == () for sample in closed.samples)
    assert closed.origins == list(range(120))
    gold = samples_for(ROWS, "gold", 5, 0)
    assert [sample.documents for sample in gold.samples] == [gold_of(example) for example in ROWS]
    found = samples_for(ROWS, "retrieved", 4, 0)
    assert [sample.documents for sample in found.samples] == [example.documents[:4] for example in ROWS]
    mixed = samples_for(ROWS, "gold+distractors", 5, 0)
    for example, sample in zip(ROWS, mixed.samples, strict=True):
        assert sum(held(example, sample)) == 1
        assert len({document.text.casefold() for document in sample.documents}) == 5
        assert sum(metrics.has_answer(example.answers, document.text) for document in sample.documents) == 1
        assert dict(zip(sample.ranks, sample.documents, strict=True))[0].id in example.gold
    many = [row(i) for i in range(600)]
    places = Counter(
        held(example, sample).index(True)
        for example, sample in zip(many, samples_for(many, "gold+distractors", 5, 0).samples, strict=True)
    )
    assert chi_square([places[i] for i in range(5)]) < 18.47
    assert samples_for(ROWS, "gold+distractors", 5, 0) == mixed
    assert samples_for(ROWS, "gold+distractors", 5, 1) != mixed


def test_rows_without_gold_are_left_out_of_conditions_that_need_it(caplog: pytest.LogCaptureFixture) -> None:
    rows = [ROWS[0], row(1, gold=False), ROWS[2]]
    made = samples_for(rows, "gold", 5, 0)
    assert ([sample.id for sample in made.samples], made.origins, made.left_out) == (
        ["row0", "row2"],
        [0, 2],
        ("row1",),
    )
    assert "gold: 1 of 3 rows have no gold passage and are left out" in caplog.text
    assert samples_for(rows, "retrieved", 5, 0).left_out == ()
    with pytest.raises(ConfigError, match="needs gold passages, and none of 1 rows has one"):
        samples_for(rows[1:2], "gold+distractors", 5, 0)
    with pytest.raises(ConfigError, match="no row has one"):
        samples_for([dataclasses.replace(ROWS[0], documents=())], "retrieved", 5, 0)
    with pytest.raises(ConfigError, match="n_docs is 0"):
        samples_for(rows, "gold", 0, 0)
    with pytest.raises(ConfigError, match="finished prompts cannot be asked"):
        samples_for([dataclasses.replace(ROWS[0], finished="p")], "closed-book", 5, 0)


def test_conditions_take_solved_examples_and_gold_that_was_not_found() -> None:
    lost = Document("lost", "", "Gold that no search found.", True, NOT_FOUND)
    example = row(0, gold=False)
    example = dataclasses.replace(example, documents=(*example.documents, lost), gold=frozenset({"lost"}))
    shots = Shots(ROWS[10:], 2, 0, n_docs=5)
    for condition in ("gold", "gold+distractors"):
        (sample,) = samples_for([example], condition, 3, 0, shots=shots).samples
        assert [document.score for document in sample.documents if document.id == "lost"] == [None]
        assert len(sample.shots) == 2
    (sample,) = samples_for([example], "retrieved", 99, 0).samples
    assert "lost" not in {document.id for document in sample.documents}


def test_real_data(real_data: Path) -> None:
    config = SftDataConfig()
    squad = read_examples(config, real_data / "squad" / "squad_v1.1_20articles.json.gz", most=400).examples
    assert maker(squad).describe()["gold_first"] == 1.0  # its own paragraph is all that a row has
    hotpot = read_examples(config, real_data / "hotpotqa" / "hotpot_train_mixed_100.json.gz").examples
    for rows in (squad, hotpot):
        for example, sample in raft_samples(2, rows, raft_p=0.5):
            inside = held(example, sample)
            assert sum(inside) in (0, len(example.gold))
            assert len({document.text for document in sample.documents}) == len(sample.documents) == N_DOCS
            assert not any(
                metrics.has_answer(example.answers, document.text)
                for document, gold in zip(sample.documents, inside, strict=True)
                if not gold
            )
    assert all(sum(held(hotpot[i], s)) == 2 for i, s in enumerate(samples_for(hotpot, "gold", 5, 0).samples))
    bare = read_examples(config, real_data / "nq" / "NQ-open.dev.jsonl", most=50).examples
    assert all(sample.documents == () for sample in maker(bare).samples(0))
    with pytest.raises(ConfigError, match="--raft needs gold passages"):
        maker(bare, raft=True)
