"""What ScaleDown's flags and the keys of its configuration mean here, beside those of transformers and PEFT.

ScaleDown's flags are our own names with underscores; what differs are the names of its Python configuration, the flags of its
second script, and devices. Source: ``scaledown/config.py``, ``train.py`` and ``train_with_evaluation.py`` of
scaledown-team/soft_compression (January 2026).
"""

from __future__ import annotations

from collections.abc import Mapping

from ragtrain.config import aliases, foreign
from ragtrain.config import foreign_values as values
from ragtrain.config.aliases import Alias, Give, Meaning, Reading, Refused, choice, ignored, only, rename

DEVICES = {"gpu": "gpu", "cuda": "gpu", "cpu": "cpu", "auto": "auto"}
#: Sections of ``train sft`` that ``train compress`` has as well; keys that mean fields of others are not its.
_SECTIONS = ("loop", "optim", "run", "model", "lora")


def _device(value: object) -> Meaning | None:
    """Read ScaleDown's and torch's names of devices."""
    name = aliases.word(value)
    if name == "trainium":
        raise Refused("expected auto, gpu or cpu: Trainium is not supported")
    return Meaning((Give("loop.device", DEVICES[name]),)) if name in DEVICES else None


def _reranking(value: object) -> Meaning:
    """Read the switch of the relevance head: on, it is trained where rows have scores, which is what happens anyway."""
    return Meaning() if aliases.truth(value) else Meaning((Give("objective.rank_weight", 0.0),))


def _shared(table: Mapping[str, Alias]) -> dict[str, Alias]:
    """Return the entries of a table whose fields ``train compress`` has, by names that are not those of the fields."""
    return {
        name: alias for name, alias in table.items()
        if not name.startswith("_") and all(field.partition(".")[0] in _SECTIONS for field in alias.fields)
        and not any(field.rpartition(".")[2] == name for field in alias.fields)
    }  # fmt: skip


COMPRESS_ALIASES: Mapping[str, Alias] = {
    **_shared(foreign.TRAIN),
    "device_type": choice("loop.device", DEVICES),
    "num_compressor_layers": rename("compressor.num_layers"),
    "modernbert_model_name": rename("compressor.compressor_model"),
    "generator_model": rename("model.model_name_or_path"),
    "generator_model_name": rename("model.model_name_or_path"),
    "torch_dtype": foreign.MODEL["torch_dtype"],
    "use_lora": only("true", "yes", "1", why="the generator is trained by adapters, without which it is the base"),
    "lora_r": rename("lora.lora_rank"),
    "lora_target_modules": rename("lora.lora_targets"),
    "enable_reranking": Alias(("objective.rank_weight",), _reranking, silent=True),
    "reranking_loss_weight": rename("objective.rank_weight"),
    "projection_hidden_size": rename("compressor.connector_hidden"),
    "compressor_hidden_size": ignored("it is the compressor's"),
    "generator_hidden_size": ignored("it is the generator's"),
    "num_documents_train": rename("context.n_docs"),
    "num_documents_eval": ignored("evaluation reads as many passages as training, --n-docs"),
    "max_seq_length": ignored("a window is num_memory_tokens * compression_rate tokens, longer passages are several"),
    "max_answer_length": ignored("answers are learnt whole"),
    "learning_rate_generator": rename("optim.learning_rate"),
    "learning_rate_compressor": rename("optim.compressor_learning_rate"),
    "learning_rate_compressor_llama": rename("optim.compressor_learning_rate"),
    "learning_rate_compressor_nlayers": rename("optim.compressor_learning_rate"),
    "learning_rate_compressor_modernbert": rename("optim.compressor_learning_rate"),
    "use_bf16": values.precision("bf16"),
    "use_fp16": values.precision("fp16"),
}
"""Everything that ``train compress`` understands besides its own names."""

COMPRESS_READINGS: Mapping[str, Reading] = {
    "loop.device": _device,
    **{
        name: reading for name, reading in values.READINGS.items()
        if name.partition(".")[0] in _SECTIONS
    },
}  # fmt: skip
"""Values of our own fields as other programs write them."""
