"""The script that makes the demo's causal model: its texts, its attention, and that two steps of it run."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The modules of the script, imported from their folder."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import invented
        import pretrain_demo_causal
    finally:
        sys.path.remove(str(SCRIPTS))
    return invented, pretrain_demo_causal


@pytest.fixture(scope="module")
def tokenizer(scripts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The demo's tokenizer, as the script changes it."""
    from ragtrain.data import demo

    folder = tmp_path_factory.mktemp("checkpoints") / "generator"
    folder.mkdir()
    for path in demo.GENERATOR.glob("tokenizer*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return scripts[1].causal_tokenizer(0, folder.parent)


@pytest.fixture(scope="module")
def small(scripts: Any, tokenizer: Any) -> Any:
    """A small model."""
    torch.manual_seed(0)
    return scripts[1].new_model(len(tokenizer), 32, 2, 2, 48)


def test_replies_hold_the_answer_where_they_say(scripts: Any) -> None:
    invented, _ = scripts
    rng = random.Random(0)
    for _ in range(100):
        (passage,) = invented.entity(rng, 1)
        for question in passage.questions:
            sentence, start = invented.reply(rng, question)
            assert sentence[start : start + len(question.answer)].casefold() == question.answer.casefold()
            assert len(sentence) > len(question.answer) + 3, "a whole sentence, not the answer alone"


def test_a_twin_tells_the_same_of_someone_else(scripts: Any) -> None:
    invented, _ = scripts
    rng = random.Random(0)
    (passage,) = invented.entity(rng, 1)
    twin = invented.twin(rng, passage)
    told = [{question.fact.questions for question in one.questions} for one in (passage, twin)]
    assert told[0] & told[1]
    assert twin.title != passage.title
    for question in twin.questions:
        assert twin.text[question.start :][: len(question.answer)].casefold() == question.answer.casefold()


@pytest.mark.parametrize("step", [0, 4000])
def test_pointers_point_at_the_answer(scripts: Any, tokenizer: Any, step: int) -> None:
    _, script = scripts
    backend = tokenizer.backend_tokenizer
    batch = script.causal_batch(backend, 0, step)
    known = batch.pointers.ge(0)
    assert known.sum() > 0.8 * batch.answers.ge(0).sum() > 20
    assert torch.equal(batch.tokens.gather(1, batch.pointers.clamp(min=0))[known], batch.tokens[known])
    where = torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
    assert (batch.pointers < where)[known].all()
    told = [int(number) for number in batch.answers.unique() if number >= 0]
    assert told == list(range(len(told)))
    again = script.causal_batch(backend, 0, step)
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(batch).items())


def test_an_end_of_text_follows_every_reply(scripts: Any, tokenizer: Any) -> None:
    _, script = scripts
    batch = script.causal_batch(tokenizer.backend_tokenizer, 0, 4000)
    for tokens, answers in zip(batch.tokens, batch.answers, strict=True):
        assert tokens[0] == script.BOS
        assert (tokens == script.EOS).sum() == len(answers.unique()) - 1
    text = tokenizer.decode(batch.tokens[0], skip_special_tokens=False)
    assert ".</s>" in text or "</s>\n" in text


def test_plain_attention_is_that_of_transformers(small: Any) -> None:
    tokens = torch.randint(4, 600, (2, 40), generator=torch.Generator().manual_seed(0))
    logits = []
    for name in ("sdpa", "plain"):
        small.set_attn_implementation(name)
        logits.append(small(tokens, use_cache=False).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_the_guided_head_is_the_one_of_the_model(scripts: Any, small: Any) -> None:
    _, script = scripts
    tokens = torch.randint(4, 600, (2, 30), generator=torch.Generator().manual_seed(0))
    small.set_attn_implementation("eager")
    output = small(tokens, use_cache=False, output_attentions=True, output_hidden_states=True)
    rows, places = torch.tensor([0, 1, 1]), torch.tensor([3, 17, 29])
    looked = script.looked_at(small, output.hidden_states[-2], rows, places)
    torch.testing.assert_close(looked.exp(), output.attentions[-1][rows, :, places], rtol=1e-4, atol=1e-6)


def test_the_first_layer_starts_with_a_head_that_looks_back(scripts: Any) -> None:
    torch.manual_seed(0)
    model = scripts[1].new_model(600, 128, 1, 4, 64)
    model.set_attn_implementation("eager")
    tokens = torch.randint(4, 600, (1, 60), generator=torch.Generator().manual_seed(0))
    (attention,) = model(tokens, use_cache=False, output_attentions=True).attentions
    for head in range(3):
        assert attention[0, head].diagonal(-head - 1)[5:].mean() > 0.7


def test_two_steps_run_and_resume(scripts: Any, tokenizer: Any, small: Any, tmp_path: Path) -> None:
    _, script = scripts
    backend = tokenizer.backend_tokenizer

    def batches(step: int) -> Any:
        batch = script.causal_batch(backend, 0, step)
        batch.tokens, batch.weights, batch.pointers, batch.answers = (value[:6] for value in vars(batch).values())
        return batch

    small.set_attn_implementation("plain")
    course = script.Course("causal", small, batches, [], script.causal_loss, 1e-3, script.muon)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    assert script.train(course, 1e9, tmp_path, max_steps=2)["steps"] == 2
    after = small.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert script.train(course, 1e9, tmp_path, max_steps=3)["steps"] == 3, "goes on from the checkpoint"


def test_a_saved_model_loads(scripts: Any, tokenizer: Any, small: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    scripts[1].save(small, tokenizer, tmp_path / "causal", {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "causal")
    assert model.dtype == torch.float16
    assert model.config._attn_implementation == "sdpa", "nothing of the training's own attention is left"
    ids = AutoTokenizer.from_pretrained(tmp_path / "causal")("Velmor")["input_ids"]
    assert ids[0] == model.config.bos_token_id
    assert ids[-1] != model.config.eos_token_id
