"""The script that makes the demo's small models: its text, its tokenizers, and that two steps of it run."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The two modules of the script, imported from their folder."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import invented
        import pretrain_demo
    finally:
        sys.path.remove(str(SCRIPTS))
    return invented, pretrain_demo


@pytest.fixture(scope="module")
def small(scripts: Any) -> Any:
    """A tokenizer and a model of each kind, small."""
    _, script = scripts
    patch = pytest.MonkeyPatch()
    patch.setattr(script, "TOKENIZER_TEXTS", 100)
    tokenizers = script.generator_tokenizer(0, 600), script.encoder_tokenizer(0, 400)
    patch.undo()
    torch.manual_seed(0)
    return *tokenizers, script.new_generator(len(tokenizers[0]), 16, 1), script.new_encoder(len(tokenizers[1]), 16, 1)


def test_invented_text_depends_on_the_seed_alone(scripts: Any) -> None:
    invented, _ = scripts
    first, again, other = ([invented.entity(random.Random(seed), 3) for _ in range(2)] for seed in ("a", "a", "b"))
    assert first == again
    assert first != other


def test_every_answer_stands_where_it_is_said_to(scripts: Any) -> None:
    invented, _ = scripts
    rng = random.Random(1)
    passages = [passage for _ in range(200) for passage in invented.entity(rng, 2)]
    asked = [(passage, question) for passage in passages for question in passage.questions]
    assert len(asked) > 600
    for passage, question in asked:
        there = passage.text[question.start :][: len(question.answer)]
        assert there.casefold() == question.answer.casefold()
        assert passage.title in question.question
        assert not set("{}") & set(passage.text + question.question)


def test_no_passage_is_longer_than_asked(scripts: Any) -> None:
    invented, _ = scripts
    rng = random.Random(2)
    lengths = [len(p.text.split()) for _ in range(200) for p in invented.entity(rng, 2, 40)]
    assert max(lengths) <= 55  # a first fact is never cut
    assert sum(length > 40 for length in lengths) < 20


def test_word_lists_hold_no_fact_and_no_sentence_of_the_demo(scripts: Any) -> None:
    """What the models are pre-trained on shares no name and no wording with the demo set."""
    invented, _ = scripts
    from ragtrain.data import demo

    capitals = {"days", "months", "place_heads", "place_tails"}
    words = {word for name, group in invented.WORDS.items() if name not in capitals for word in group}
    assert len(words) > 500
    assert all(word.islower() for word in words), "a proper name among the everyday words"
    told = " ".join(passage.text for passage in demo.build(0).passages)
    templates = [template for group in invented.TEMPLATES for template in group]
    assert len(templates) > 300
    for template in templates:
        for part in re.split(r"\{[^}]*\}", template):
            assert len(part) < 32 or part not in told, template


def test_an_answer_is_spelled_as_in_its_passage(small: Any) -> None:
    tokenizer = small[0]
    whole = tokenizer("Velmor Tarn / In 1987 Velmor had 1,240 boats.", add_special_tokens=False)["input_ids"]
    for answer in ("Velmor", "1987", "1,240", "Velmor Tarn"):
        spelled = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert any(whole[k : k + len(spelled)] == spelled for k in range(len(whole)))
        assert tokenizer.decode(spelled) == answer


def test_pointers_point_at_the_answer(scripts: Any, small: Any) -> None:
    _, script = scripts
    batch = script.generator_batch(small[0].backend_tokenizer, 0, 0, (0.1, 0.2), 40, 32)
    known = batch.pointers.ge(0)
    assert known.sum() > 32
    assert torch.equal(batch.source.gather(1, batch.pointers.clamp(min=0))[known], batch.labels[known])


@pytest.mark.parametrize("part", ["generator", "encoder"])
def test_two_steps_run_and_resume(scripts: Any, small: Any, part: str, tmp_path: Path) -> None:
    _, script = scripts
    if part == "generator":
        backend = small[0].backend_tokenizer
        course = script.Course(
            part,
            small[2],
            lambda step: script.generator_batch(backend, 0, step, (0.3, 0.3), 25, 4),
            [],
            script.generator_loss,
            1e-3,
        )
    else:
        backend = small[1].backend_tokenizer
        course = script.Course(
            part, small[3], lambda step: script.encoder_batch(backend, 0, step, 3), [], script.encoder_loss, 1e-3
        )
    before = {name: value.clone() for name, value in course.model.state_dict().items()}
    assert script.train(course, 1e9, tmp_path, max_steps=2)["steps"] == 2
    after = course.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert script.train(course, 1e9, tmp_path, max_steps=3)["steps"] == 3, "goes on from the checkpoint"


def test_saved_models_load(scripts: Any, small: Any, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer, BartForConditionalGeneration

    _, script = scripts
    script.save(small[2], small[0], tmp_path / "generator", {})
    script.save(small[3], small[1], tmp_path / "encoder", {})
    generator = BartForConditionalGeneration.from_pretrained(tmp_path / "generator")
    assert generator.dtype == torch.float16
    ids = AutoTokenizer.from_pretrained(tmp_path / "generator")("Velmor", return_tensors="pt")["input_ids"]
    assert [ids[0, 0], ids[0, -1]] == [0, 2]
    encoder = AutoModel.from_pretrained(tmp_path / "encoder")
    pair = AutoTokenizer.from_pretrained(tmp_path / "encoder")("Velmor", "A town.", return_tensors="pt")
    assert pair["token_type_ids"].max() == 1
    assert encoder.config.hidden_size == 16
