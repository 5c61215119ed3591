"""The saved form of a fine-tuned causal language model.

final_model/
├── adapter_config.json, adapter_model.safetensors   as peft loads them; the configuration names the base
│   or config.json, model.safetensors                where all weights were trained, as transformers loads them
├── tokenizer.json, …                                with the chat template
├── README.md                                        what it is and how plain peft or transformers load it
└── ragtrain.json                                    how prompts are made, so that an evaluation makes the same ones
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import AutoModelForCausalLM, GenerationConfig

from ragtrain.errors import ConfigError, DataError
from ragtrain.models import weights
from ragtrain.models.adapters import CONFIG_FILE, has_lora, load_adapters, lora_config, merge_lora, save_adapters
from ragtrain.models.causal import bits, load_causal
from ragtrain.models.folders import SIDECAR, hushed, load_weights, local_folder, read_json, written_aside
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.config.commands.sft import SftModelConfig
    from ragtrain.models.causal_config import Precision

log = logging.getLogger("ragtrain")

KIND = "sft"


def save_causal(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    sidecar: Mapping[str, Any],
    base_name: str,
) -> Path:
    """Write the adapters of a model, or all of its weights where it has none, and what belongs to them.

    The folder is written aside and then put in place of what stands there. The model stays as it is.

    Args:
        model: trained.
        tokenizer: of it.
        folder: where it goes.
        sidecar: becomes ``ragtrain.json``, with ``kind``, ``base`` and ``network`` added: what the base is, whether
            there are adapters, and a fingerprint of the base.
        base_name: folder or hub id that training began with; an adapter's own base where it began with an adapter.

    Returns:
        The folder.
    """
    base, adapter = base_of(model, base_name), has_lora(model)
    network: dict[str, Any] = {
        "adapter": adapter,
        "bits": bits(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if adapter:
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        network["fingerprint"] = weights.base_fingerprint(frozen)
    about = {**sidecar, "kind": KIND, "base": base, "network": network}
    with written_aside(Path(folder)) as path:
        if adapter:
            save_adapters(model, path, base)
        else:
            save_network(model, path)
        with hushed():
            tokenizer.save_pretrained(path)
        write_json(path / SIDECAR, about)
        (path / "README.md").write_text(_card(about), encoding="utf-8")
    return Path(folder)


def save_merged(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    sidecar: Mapping[str, Any],
    base_name: str,
) -> Path:
    """Write a model with its adapters added to the weights of the base.

    A base of 8 or 4 bits is read again in full precision and the adapters are added to that: the sum has no place in so
    few bits. It then differs from what was trained by what those bits lost. The model that is given stays as it is.

    Args:
        model: with adapters.
        tokenizer: of it.
        folder: where it goes.
        sidecar: see ``save_causal``.
        base_name: see ``save_causal``.

    Returns:
        The folder.

    Raises:
        ConfigError: the model has no adapters.
    """
    if not has_lora(model):
        raise ConfigError("there are no adapters to merge: all weights were trained", hint="Leave --merge out.")
    base = base_of(model, base_name)
    read_from = Path(model.config._name_or_path)  # where a hub id was found, which may be out of reach by now
    with written_aside(Path(folder)) as path:
        adapter = path / "adapter"
        save_adapters(model, adapter, base)
        whole = load_weights(
            AutoModelForCausalLM,
            read_from if read_from.is_dir() else local_folder(base, kind="base"),
            base,
            dtype="auto",
        )
        if getattr(whole, "is_quantized", False):
            raise ConfigError(f"{base} itself is stored in few bits, to which adapters cannot be added",
                              hint="Leave --merge out, or train on the model that it was made from.")  # fmt: skip
        load_adapters(whole, adapter)
        merge_lora(whole)
        shutil.rmtree(adapter)
        network = {"adapter": False, "bits": None, "dtype": str(whole.dtype).removeprefix("torch.")}
        about = {**sidecar, "kind": KIND, "base": base, "network": network}
        save_network(whole, path)
        with hushed():
            tokenizer.save_pretrained(path)
        write_json(path / SIDECAR, about)
        (path / "README.md").write_text(_card(about), encoding="utf-8")
    return Path(folder)


def load_causal_run(
    name_or_path: str | Path,
    config: SftModelConfig | None = None,
    *,
    checkpoint: Path | None = None,
    precision: Precision = "no",
    device: torch.device | str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load what ``save_causal`` or ``save_merged`` wrote.

    Args:
        name_or_path: the folder, a run that ends in it, one of that run's checkpoints, or a hub id it was pushed to.
        config: bits, type and attention; without it, the bits it was trained in.
        checkpoint: of the same run, whose weights are taken instead of the final ones.
        precision: arithmetic of the forward pass.
        device: where a base of 8 or 4 bits goes.

    Returns:
        The network in evaluation mode, its tokenizer, and the contents of ``ragtrain.json``.

    Raises:
        ConfigError: there is no such model, or it is of another kind.
        DataError: something is missing from it, or its base is not the one it was trained on.
        CheckpointError: the checkpoint is another model's.
    """
    path = Path(name_or_path)
    if path.parent.name == "checkpoints" and path.is_dir():
        path, checkpoint = path.resolve().parent.parent, path
    folder = local_folder(path if path.is_dir() else name_or_path, kind="model")
    sidecar = read_sidecar(folder)
    network = sidecar.get("network", {})
    if config is None:
        from ragtrain.config.commands.sft import SftModelConfig

        held = network.get("bits")
        config = SftModelConfig(load_in_8bit=held == 8, load_in_4bit=held == 4)
    model, tokenizer = load_causal(folder, config, precision=precision, device=device)
    if has_lora(model) and bits(model) == network.get("bits"):
        check_base(model, sidecar, folder)
    if checkpoint is not None:
        weights.load_weights(model, checkpoint)
    return model, tokenizer, sidecar


def check_base(model: PreTrainedModel, sidecar: Mapping[str, Any], folder: Path) -> None:
    """Refuse a base that was changed since the adapters were trained on it."""
    expected = sidecar["network"].get("fingerprint")
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if expected is not None and weights.base_fingerprint(frozen) != expected:
        raise DataError(
            f"the adapter was trained on another base than {sidecar['base']} is now",
            path=folder / CONFIG_FILE,
            hint="Put the base back that it was trained on.",
        )


def read_sidecar(folder: Path) -> dict[str, Any]:
    """Return ``ragtrain.json`` of a model that was fine-tuned here.

    Raises:
        ConfigError: there is none, or it is of another kind of run.
    """
    sidecar = read_json(folder / SIDECAR)
    if sidecar.get("kind") != KIND:
        raise ConfigError(f"{folder} is not the model of a `train sft` run",
                          hint="Pass a run folder or its final_model.")  # fmt: skip
    return sidecar


def push_to_hub(folder: str | Path, repo_id: str) -> str:
    """Copy a folder into a private repository of the hub, which is made where there is none, and return its address.

    Raises:
        ConfigError: the hub refused.
    """
    from huggingface_hub import HfApi  # slow to import, and needed where it is asked for only

    api = HfApi()
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), commit_message="Add a model fine-tuned with ragtrain"
        )
    except Exception as error:  # the hub's errors have no common class: offline, no token, no right, bad name
        raise ConfigError(
            f"push_to_hub {repo_id!r}: the hub did not take {folder}: {type(error).__name__}: {error}",
            hint="Log in with `hf auth login` and check the name; the model itself is saved.",
        ) from error
    return f"https://huggingface.co/{repo_id}"


def save_network(model: PreTrainedModel, path: Path) -> None:
    """Write a network whatever its generation settings: some that transformers reads it refuses to write.

    Of such settings (a temperature where nothing is sampled) only the tokens that begin and end a text are kept.
    """
    given: Any = model.generation_config
    try:
        given.validate(strict=True)
    except ValueError as error:
        log.warning("the generation settings of the base are left out: %s", str(error).split("\n")[1])
        model.generation_config = cast("Any", GenerationConfig)(
            bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
        )
    try:
        with hushed():
            model.save_pretrained(path)
    finally:
        model.generation_config = given


def base_of(model: PreTrainedModel, name: str) -> str:
    """Return what adapters stand on: a folder with its whole path, or a hub id, which is not looked up again."""
    if has_lora(model) and (there := lora_config(model).base_model_name_or_path):
        return str(there)  # of adapters that were there at the beginning
    return str(local_folder(name, kind="base").resolve()) if Path(name).is_dir() else name


def _card(about: Mapping[str, Any]) -> str:
    """Return a short description for people: base, data, and how plain libraries load it."""
    base, adapter, held = about["base"], about["network"]["adapter"], about["network"]["bits"]
    kind = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    library = "peft" if adapter else "transformers"
    what = "A LoRA adapter" if adapter else "All weights"
    lines = ["---", f"library_name: {library}"]
    lines += [] if Path(base).is_absolute() else [f"base_model: {base}"]
    lines += [
        "pipeline_tag: text-generation", "tags: [rag, ragtrain]", "---", "",
        f"# {base.rstrip('/').rsplit('/', 1)[-1]}, fine-tuned on retrieval-augmented prompts", "",
        f"{what} of `{base}`, trained by `ragtrain train sft`" + (f" on a base held in {held} bits." if held else "."),
        "How prompts were made stands in `ragtrain.json`.", "",
    ]  # fmt: skip
    data = [f"- {name}: {value}" for name, value in _flat(about.get("data") or {})]
    lines += ["## Trained on", "", *data, ""] if data else []
    lines += [
        "## Use", "", "```python", f"from {library} import {kind}", "from transformers import AutoTokenizer", "",
        f'model = {kind}.from_pretrained("FOLDER")', 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")', "```", "",
        "`ragtrain eval --model-dir FOLDER` makes the prompts it was trained on and measures the answers.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested values with the names that lead to them, lists left out."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (str, int, float)):
            found.append((prefix + name, value))
    return found
