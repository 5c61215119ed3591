"""The demo encyclopaedia: complete, unambiguous, answerable from its passages, split by entity."""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ragtrain.data import demo
from ragtrain.data.demo import reading, writing
from ragtrain.errors import DataError
from ragtrain.metrics import normalize_answer

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.records import Question


@pytest.fixture(scope="module")
def built() -> demo.DemoSet:
    return demo.build()


@pytest.fixture(scope="module")
def questions(built: demo.DemoSet) -> list[Question]:
    return [*built.train, *built.validation, *built.test]


def test_is_large_enough(built: demo.DemoSet, questions: list[Question]) -> None:
    assert len(built.passages) >= 1500
    assert len(questions) >= 4000
    shares = [len(split) / len(questions) for split in (built.train, built.validation, built.test)]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_is_built_in_no_time() -> None:
    reading.read_table.cache_clear()
    reading.read_templates.cache_clear()
    start = time.process_time()
    demo.build()
    assert time.process_time() - start < 3  # about half a second; the rest is room for a slow machine


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, ragtrain.data.demo as demo; demo.build();"
        "print(*{'torch', 'transformers', 'datasets', 'faiss', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_ids_are_unique_and_plain(built: demo.DemoSet, questions: list[Question]) -> None:
    for ids in ([passage.id for passage in built.passages], [question.id for question in questions]):
        assert [name for name, count in collections.Counter(ids).items() if count > 1] == []
        assert all(name.startswith("demo-") and not re.search(r"\s|[A-Z]", name) for name in ids)
    assert "demo-country-france-capital" in {question.id for question in questions}


def test_every_answer_stands_in_its_gold_passage_and_nowhere_before(
    built: demo.DemoSet, questions: list[Question]
) -> None:
    passages = {passage.id: passage for passage in built.passages}
    for question in questions:
        (gold,) = question.documents
        assert gold.is_gold
        assert (gold.title, gold.text) == (passages[gold.id].title, passages[gold.id].text)
        answer = question.answers[0]
        assert answer in gold.text, question.id
        assert writing.contains_words(gold.text, answer), question.id
        assert not writing.contains_words(gold.title, answer), question.id
        assert not writing.contains_words(question.question, answer), question.id


def test_answers_are_short_and_survive_normalisation(questions: list[Question]) -> None:
    for question in questions:
        assert all(normalize_answer(answer) for answer in question.answers), question.id
        assert len(set(question.answers)) == len(question.answers), question.id
        assert len(normalize_answer(question.answers[0]).split()) <= 5, question.id


def test_passages_are_short_and_whole(built: demo.DemoSet) -> None:
    for passage in built.passages:
        assert 25 <= len(passage.text.split()) <= 60, passage.id
        assert passage.text[0].isupper() or not passage.text[0].isalpha(), passage.id
        assert passage.text.endswith("."), passage.id
        assert not re.search(r"[{}\t|]|  |\.\.", passage.title + passage.text), passage.id


def test_questions_name_their_entity_and_no_two_are_alike(questions: list[Question]) -> None:
    names = {
        f"{entity.kind}-{entity.slug}": entity.name for kind in reading.kinds() for entity in reading.read_table(kind)
    }
    for question in questions:
        assert names[question.group].casefold() in question.question.casefold(), question.id
        assert question.question.endswith("?") or question.question.startswith(("Name ", "Give ")), question.id
        assert "{" not in question.question
    texts = collections.Counter(question.question for question in questions)
    assert [text for text, count in texts.items() if count > 1] == []


def test_names_of_several_kinds_are_told_apart(built: demo.DemoSet, questions: list[Question]) -> None:
    kinds: dict[str, set[str]] = collections.defaultdict(set)
    for passage in built.passages:
        kinds[passage.title].add(passage.id.split("-")[1])
    assert [title for title, found in kinds.items() if len(found) > 1] == []
    by_id = {question.id: question.question for question in questions}
    assert "the element mercury" in by_id["demo-element-mercury-symbol"]
    assert "the planet Mercury" in by_id["demo-planet-mercury-diameter"]


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_no_test_entity_is_asked_about_in_training(seed: int) -> None:
    names = {
        f"{entity.kind}-{entity.slug}": entity.bare.casefold()
        for kind in reading.kinds()
        for entity in reading.read_table(kind)
    }
    built = demo.build(seed)
    asked = [{names[question.group] for question in split} for split in (built.train, built.validation, built.test)]
    assert all(asked)
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
    assert not asked[1] & asked[2]


def test_every_kind_is_in_every_split(built: demo.DemoSet) -> None:
    for split in (built.train, built.validation, built.test):
        assert {question.extra["kind"] for question in split} == set(reading.kinds())


def test_the_seed_moves_the_split_and_nothing_else(built: demo.DemoSet, questions: list[Question]) -> None:
    assert demo.build() == built
    other = demo.build(1)
    assert other.passages == built.passages
    again = {question.id: question for question in [*other.train, *other.validation, *other.test]}
    assert {question.id: question.question for question in questions} == {
        name: question.question for name, question in again.items()
    }
    assert {question.id for question in other.test} != {question.id for question in built.test}


def test_the_split_is_the_same_on_every_machine() -> None:
    """Hashes of strings differ from process to process; the split must not."""
    code = (
        "import hashlib; from ragtrain.data import demo; built = demo.build();"
        "print(hashlib.sha256(repr([q.id for q in built.test]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_tables_and_templates_fit_and_wordings_vary() -> None:
    for kind in reading.kinds():
        entities, templates = reading.read_table(kind), reading.read_templates(kind)
        told = [relation for relations in templates.themes.values() for relation in relations]
        assert len(told) == len(set(told)), kind
        assert {relation for entity in entities for relation in entity.facts} == set(told), kind
        assert len(templates.fillers) >= 5, kind
        for relation in told:
            assert len(set(templates.sentences[relation])) >= 3, (kind, relation)
            assert len(set(templates.questions[relation])) >= 4, (kind, relation)
            assert all("{V}" in text or "{aV}" in text for text in templates.sentences[relation]), (kind, relation)
            assert all("{N}" in text for text in templates.questions[relation]), (kind, relation)
            assert not any("{V" in text for text in templates.questions[relation]), (kind, relation)
        for entity in entities:
            assert all(part for answers in entity.facts.values() for part in answers), entity.name


def test_a_malformed_file_is_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    (folder / "templates").mkdir()
    (folder / "tables").mkdir()
    (folder / "templates" / "odd.txt").write_text("capital\n  s The capital is {V}.\n  z What?\n", encoding="utf-8")
    (folder / "templates" / "key.txt").write_text("colour green\n", encoding="utf-8")
    (folder / "tables" / "odd.tsv").write_text("name\tcapital\nFrance\tParis\textra\n", encoding="utf-8")
    monkeypatch.setattr(reading, "_folder", lambda name: folder / name)
    with pytest.raises(DataError, match=r"odd\.txt:3"):
        reading.read_templates("odd")
    with pytest.raises(DataError, match="'colour'"):
        reading.read_templates("key")
    with pytest.raises(DataError, match=r"odd\.tsv:2: 3 cells"):
        reading.read_table("odd")


# ---------------------------------------------------------------- the causal model


def test_the_causal_model_is_small_and_plain() -> None:
    import json

    config = json.loads((demo.CAUSAL / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] >= 1024
    assert config["tie_word_embeddings"]
    files = {path.name for path in demo.CAUSAL.iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (demo.CAUSAL / "model.safetensors").stat().st_size < 5e6


def test_the_tokenizer_of_the_causal_model_begins_a_text_and_does_not_end_it() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.CAUSAL)
    assert tokenizer.model_max_length >= 1024
    prompt = "[1] Velmor\nA town.\n\nQuestion: What is Velmor?\nAnswer:"
    ids = tokenizer(prompt)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer(f"{prompt} a town")["input_ids"][: len(ids)] == ids, "an answer does not change its prompt"
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_the_causal_model_reads_and_answers_in_sentences() -> None:
    """Its base looks things up in a passage, and says them in a whole sentence, the same one each time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.CAUSAL)
    model = AutoModelForCausalLM.from_pretrained(demo.CAUSAL, dtype=torch.float32).eval()
    told = {"Velmor": ("Oskitan", "Tarnaby"), "Grisk": ("Ulfwick", "Peraloma")}
    passages = [
        f"[{rank}] {name}\n{name} is a village. The owner of {name} is {owner}. The harbour of {name} is {harbour}.\n\n"
        for rank, (name, (owner, harbour)) in enumerate(told.items(), 1)
    ]
    answers = []
    for name in told:
        for noun in ("owner", "harbour"):
            ids = tokenizer(f"{''.join(passages)}Question: What is the {noun} of {name}?\nAnswer:", return_tensors="pt")
            twice = [model.generate(**ids, max_new_tokens=24, do_sample=False)[0] for _ in range(2)]
            assert torch.equal(*twice)
            assert twice[0][-1] == tokenizer.eos_token_id
            answers.append(tokenizer.decode(twice[0][ids["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    values = [value for pair in told.values() for value in pair]
    assert not set(answers) & set(values), "short answers come with fine-tuning only"
    assert sum(value in answer for value, answer in zip(values, answers, strict=True)) >= 2, answers
