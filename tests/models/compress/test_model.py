"""Windows become vectors, vectors become answers, and gradients find their way back."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ragtrain.data.compress.batches import WindowBatch
from ragtrain.data.sft.batches import collate_rows
from ragtrain.errors import ConfigError
from ragtrain.models.causal import label_logits, set_checkpointing
from ragtrain.models.compress.connector import make_connector, match_scale
from ragtrain.models.compress.generate import cut
from ragtrain.models.compress.model import CONTINUE, RECONSTRUCT, CompressModel, input_scale

COMPRESSORS = ("n_layers", "modernbert", "small_lm")
ROWS = ((5, 30), (1,), (12, 7, 26))


def by_hand(model: CompressModel, windows: WindowBatch) -> tuple[Tensor, Tensor]:
    """Each window by itself, without padding: its vectors and its score, one after the other."""
    vectors, scores = [], torch.full((windows.n_documents,), float("-inf"))
    for row in range(len(windows.input_ids)):
        n = int(windows.attention_mask[row].sum())
        embedded = model.compressor.get_input_embeddings()(windows.input_ids[row, :n])
        place, span = windows.place[row, :n], windows.span[row, :n]
        for t in range(n):
            if place[t] >= 0:
                embedded[t] = model.memory[place[t]]
        states = model.compressor(inputs_embeds=embedded[None]).last_hidden_state[0]
        for k in range(int(windows.counts[row])):
            chosen = span == k if model.settings.pooling == "mean" else place == k
            vectors.append(model.connector(states[chosen].mean(0)))
        last = states[-1]
        score = model.rank_head(last / (last.square().mean() + torch.finfo().eps).sqrt())
        document = int(windows.document[row])
        scores[document] = max(scores[document], score.squeeze())
    return torch.stack(vectors), scores


@pytest.mark.parametrize("pooling", ["memory", "mean"])
@pytest.mark.parametrize("compressor", COMPRESSORS)
@torch.no_grad()
def test_all_windows_at_once_are_each_by_itself(compressor: str, pooling: str, make: SimpleNamespace) -> None:
    made = make.model(compressor=compressor, pooling=pooling, rates=(2, 12), proportional_memory=True)
    for rate in made.model.settings.all_rates:
        windows = made.windows(*ROWS, rate=rate)
        assert len(windows.input_ids) > windows.n_documents  # some passages are several windows
        memory = made.model.compress(windows)
        vectors, scores = by_hand(made.model, windows)
        assert len(vectors) == int(windows.counts.sum())
        torch.testing.assert_close(memory.vectors, vectors, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(memory.scores, scores, rtol=1e-4, atol=1e-5)
        assert memory.scores.unique().numel() == windows.n_documents


@pytest.mark.parametrize("compressor", COMPRESSORS)
@torch.no_grad()
def test_a_question_changes_the_memory_only_where_it_is_read(compressor: str, make: SimpleNamespace) -> None:
    for dependent in (True, False):
        made = make.model(compressor=compressor, query_dependent=dependent)
        row = made.windowed((9,))[0]
        other = dataclasses.replace(row, question=row.question[::-1])
        one, two = (made.model.compress(made.windower.collate([each])).vectors for each in (row, other))
        assert torch.equal(one, two) != dependent


@torch.no_grad()
def test_without_windows_there_is_no_memory(make: SimpleNamespace) -> None:
    made = make.model()
    memory = made.model.compress(cut(made.windows((5,)), slice(0, 0)))
    assert memory.vectors.shape == (0, 32)
    assert memory.scores is None


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2", "opt"])
@torch.no_grad()
def test_logits_are_those_of_the_whole_rows(kind: str, make: SimpleNamespace) -> None:
    made = make.model(kind)
    model, batch = made.model, made.batch(*ROWS)
    output = model(batch)
    vectors = model.compress(batch.windows).vectors
    expected, tasks = [], batch.slot.clone()
    for row, (ids, slot, labels) in enumerate(zip(batch.input_ids, batch.slot, batch.labels, strict=True)):
        n = int(batch.attention_mask[row].sum())
        embedded = model.generator.get_input_embeddings()(ids[:n])
        for t in range(n):
            if slot[t] >= 0:
                embedded[t] = vectors[slot[t]]
        logits = model.generator(inputs_embeds=embedded[None]).logits[0]
        expected += [logits[t - 1] for t in range(1, n) if labels[t] != -100]
    torch.testing.assert_close(output.logits, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(batch.targets, batch.labels[batch.labels != -100])
    assert torch.equal(output.memory.vectors, vectors)
    tasks[0, 0], tasks[1, 1] = RECONSTRUCT, CONTINUE
    with_tasks = model.embed(batch.input_ids, tasks, vectors)
    assert torch.equal(with_tasks[0, 0], model.tasks[0])
    assert torch.equal(with_tasks[1, 1], model.tasks[1])


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2", "opt"])
def test_gradients_reach_every_part(kind: str, compressor: str, make: SimpleNamespace) -> None:
    made = make.model(kind, compressor)
    model, batch = made.model, made.batch(*ROWS)
    base = {name: p for name, p in model.generator.named_parameters() if "lora" not in name}
    assert not any(parameter.requires_grad for parameter in base.values())
    output = model(batch)
    loss = nn.functional.cross_entropy(output.logits, batch.targets) + output.memory.scores.square().sum()
    loss.backward()
    parts = model.parts()
    assert list(parts) == ["compressor", "connector", "generator"]
    assert sum(len(part) for part in parts.values()) == sum(p.requires_grad for p in model.parameters())
    # GPT-2's and OPT's tables of positions and the last norm's neighbours all take part; tasks stand in no prompt here.
    without = [
        name for name, p in model.named_parameters()
        if p.requires_grad and name != "tasks" and (p.grad is None or not p.grad.abs().sum() > 0)
    ]  # fmt: skip
    assert [name for name in without if not name.endswith("k_proj.bias")] == []  # adds the same to all scores of a row
    assert (model.memory.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in base.values())


def test_a_task_learns_where_it_stands_in_a_prompt(make: SimpleNamespace) -> None:
    made = make.model()
    batch = made.batch((5,))
    slot = batch.slot.clone()
    slot[0, 1] = CONTINUE
    output = made.model(dataclasses.replace(batch, slot=slot))
    output.logits.logsumexp(-1).sum().backward()
    assert (made.model.tasks.grad.abs().sum(1) > 0).tolist() == [False, True]


@pytest.mark.parametrize("compressor", ["n_layers", "modernbert"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recomputed_activations_change_nothing(kind: str, compressor: str, make: SimpleNamespace) -> None:
    made = make.model(kind, compressor)
    batch, gradients = made.batch(*ROWS), []
    for on in (False, True):
        model = copy.deepcopy(made.model).train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        if on:
            set_checkpointing(model.generator, on=True)
            set_checkpointing(model.compressor, on=True)
        nn.functional.cross_entropy(model(batch).logits, batch.targets).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2", "opt"])
def test_without_adapters_the_generator_is_its_base(kind: str, make: SimpleNamespace, causal: SimpleNamespace) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(make.folders[kind], dtype=torch.float32).eval()
    made = make.model(kind)
    rows = collate_rows(causal.encoded((20, 3), (13, 5), (9, 1)), list("abc"), 1)
    model = made.model.train()
    found = model.base_logits(rows)
    assert torch.equal(found, label_logits(base, rows))
    assert not found.requires_grad
    assert model.generator.training
    assert not torch.equal(label_logits(model.generator.eval(), rows), found)
    with model.untrained(), torch.no_grad():
        assert torch.equal(model.generator(rows.input_ids).logits, base(rows.input_ids).logits)


def test_a_generator_trained_as_a_whole_has_no_base(make: SimpleNamespace, causal: SimpleNamespace) -> None:
    made = make.model(lora={"lora_rank": 0})
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    with pytest.raises(ConfigError, match="lora_rank 0"):
        made.model.base_logits(collate_rows(causal.encoded((9, 1)), ["a"], 1))
    made.model(made.batch((5,))).logits.sum().backward()
    own = {id(p) for p in made.model.compressor.parameters()}
    assert not own & {id(p) for p in made.model.generator.parameters()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_has_trained_parts_in_full(dtype: str, make: SimpleNamespace) -> None:
    made = make.model(model={"dtype": dtype}, compressor="n_layers")
    model = made.model
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: getattr(torch, dtype)}
    batch = made.batch(*ROWS)
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            output = model(batch)
        assert output.logits.dtype == output.memory.scores.dtype == torch.float32
        nn.functional.cross_entropy(output.logits, batch.targets).backward()
        assert all(p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all())
                   for p in model.parameters())  # fmt: skip
        model.zero_grad()


def test_connectors() -> None:
    assert isinstance(make_connector(8, 8, None, identity=True), nn.Identity)
    for connector in (make_connector(8, 9, None, identity=True), make_connector(8, 8, None, identity=False)):
        assert next(part.out_features for part in connector if isinstance(part, nn.Linear)) == 32
    assert make_connector(8, 8, 5, identity=True)[0].out_features == 5
    assert make_connector(2048, 8, None, identity=False)[0].out_features == 4096
    connector, states = make_connector(8, 9, None, identity=False).requires_grad_(False), torch.randn(50, 8)
    match_scale(connector, states, 0.02)
    assert float(connector(states).square().mean().sqrt()) == pytest.approx(0.02)


@pytest.mark.parametrize("kind", ["gemma3", "gpt2"])
@torch.no_grad()
def test_what_comes_out_of_a_connector_is_as_large_as_embeddings(kind: str, make: SimpleNamespace) -> None:
    made = make.model(kind, "modernbert")  # Gemma's embeddings are multiplied as they are looked up
    vectors = made.model.compress(made.windows(*ROWS)).vectors
    known = made.model.generator.get_input_embeddings()(torch.arange(60))
    ratio = float(vectors.square().mean().sqrt() / known.square().mean().sqrt())
    assert 0.4 < ratio < 2.5


@torch.no_grad()
def test_networks_that_multiply_what_they_read_are_given_less(make: SimpleNamespace) -> None:
    made = make.model()
    windows = made.windows((5,))
    before = made.model.compress(windows).vectors
    made.model.generator.config.embedding_multiplier = 12.0
    assert input_scale(made.model.generator) == 12.0
    again = CompressModel(made.model.generator, made.model.compressor, made.model.settings)
    again.memory.copy_(made.model.memory)
    torch.testing.assert_close(again.compress(windows).vectors * 12, before)
