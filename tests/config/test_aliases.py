"""Keys of RAG-FiT, transformers, TRL and PEFT: what each becomes, what is refused, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ragtrain.config import aliases, fields
from ragtrain.config.commands import RagConfig, SftConfig
from ragtrain.config.dump import dump_yaml
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError

# RAG-FiT's configuration of the ASQA experiment: its keys, its order, its values.
LORA = {
    "bias": "none", "fan_in_fan_out": False, "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 16,
    "lora_dropout": 0.1, "peft_type": "LORA", "r": 16, "target_modules": ["qkv_proj"], "task_type": "CAUSAL_LM",
    "use_rslora": True,
}  # fmt: skip
MODEL = {
    "_target_": "ragfit.models.hf.HFTrain", "model_name_or_path": "microsoft/Phi-3-mini-128k-instruct",
    "load_in_4bit": False, "load_in_8bit": True, "torch_dtype": None, "device_map": None, "trust_remote_code": True,
    "lora": LORA, "completion_start": "<|assistant|>", "instruction_in_prompt": None, "max_sequence_len": 4000,
}  # fmt: skip
TRAIN = {
    "output_dir": "./trained_models/", "bf16": False, "fp16": False, "gradient_accumulation_steps": 2,
    "group_by_length": None, "learning_rate": "1e-4", "logging_steps": 10, "lr_scheduler_type": "cosine", "max_steps": -1,
    "num_train_epochs": 1, "per_device_train_batch_size": 1, "optim": "paged_adamw_8bit", "remove_unused_columns": True,
    "save_steps": 20000, "save_total_limit": 1, "warmup_ratio": 0.03, "weight_decay": 0.001, "report_to": None,
}  # fmt: skip
DATA = {
    "instruction": "ragfit/processing/prompts/prompt_instructions/qa.txt", "template": None, "data_file": None,
    "input_key": "prompt", "output_key": None, "resume_checkpoint": None, "limit": None, "shuffle": None,
    "hfhub_tag": None, "use_wandb": None, "experiment": None, "wandb_entity": None,
}  # fmt: skip
SEED = {"model": MODEL, "train": TRAIN, **DATA}

MEANT = {
    "model.model_name_or_path": "microsoft/Phi-3-mini-128k-instruct",
    "model.load_in_8bit": True,
    "lora.lora_alpha": 16.0,
    "lora.lora_dropout": 0.1,
    "lora.lora_targets": ("qkv_proj",),
    "lora.use_rslora": True,
    "prompt.completion_start": "<|assistant|>",
    "prompt.max_length": 4000,
    "prompt.instruction": "ragfit/processing/prompts/prompt_instructions/qa.txt",
    "data.input_key": "prompt",
    "run.output_dir": Path("trained_models"),
    "loop.mixed_precision": "no",
    "loop.gradient_accumulation_steps": 2,
    "loop.num_epochs": 1.0,
    "loop.batch_size": 1,
    "loop.save_steps": 20000,
    "loop.save_total_limit": 1,
    "optim.learning_rate": 1e-4,
    "optim.optimizer": "paged_adamw_8bit",
    "optim.warmup_ratio": 0.03,
    "optim.weight_decay": 0.001,
}


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def changed(config):
    """Return what differs from the defaults, by dotted path."""
    found = {}
    for dotted, leaf in fields.leaves(type(config)).items():
        value = config
        for part in leaf.path:
            value = getattr(value, part)
        if value != leaf.default:
            found[dotted] = value
    return found


def resolve(*words, files=(), flags=None):
    return load_config(SftConfig, files, words, flags)


def problems(*words, files=(), flags=None, command=SftConfig):
    with pytest.raises(ConfigError) as caught:
        load_config(command, files, words, flags)
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


# --- whole files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ragfit.models.hf.HFTrain", "ragfoundry.models.hf.HFTrain"])
def test_the_published_file(write, target):
    path = write({**SEED, "model": {**MODEL, "_target_": target}})
    resolved = load_config(SftConfig, [path])
    assert changed(resolved.config) == MEANT
    notes = resolved.notes
    assert notes == [
        f"{path}: 22 keys have other names here, as model.lora.r is lora.lora_rank; --print-config shows each",
        f"{path}: model.trust_remote_code is without effect here (no code of a model's repository is run)",
        f"{path}: train.remove_unused_columns is without effect here",
    ]


def test_the_published_command(write):
    words = ["data_file=asqa-prefix-train.jsonl", "output_key=answers", "train.output_dir=./trained_models_context/"]
    resolved = load_config(SftConfig, [write(SEED)], words)
    assert changed(resolved.config) == MEANT | {
        "data.train_data": Path("asqa-prefix-train.jsonl"),
        "data.output_key": "answers",
        "run.output_dir": Path("trained_models_context"),
    }
    origins = resolved.origins
    assert origins["data.train_data"] == "argument as data_file"
    assert origins["data.output_key"] == "argument"
    assert origins["run.output_dir"] == "argument as train.output_dir"


def test_quantization_in_a_block_of_its_own(write):
    block = {"_target_": "transformers.BitsAndBytesConfig", "load_in_8bit": True}
    model = {key: value for key, value in MODEL.items() if not key.startswith("load_in")}
    file = {**SEED, "model": {**model, "quantization_config": block, "device_map": "auto"}, "dev_split": 0.1}
    resolved = load_config(SftConfig, [write(file)])
    assert changed(resolved.config) == MEANT | {"data.dev_split": 0.1}
    assert any("model.device_map is without effect" in note for note in resolved.notes)


def test_it_is_written_out_in_our_own_keys(write):
    resolved = load_config(SftConfig, [write(SEED)])
    text = dump_yaml(resolved.config, resolved.origins)
    assert "per_device" not in text.replace("as train.per_device_train_batch_size", "")
    assert f"  batch_size: 1  # {write(SEED)}:" in text
    assert "as train.per_device_train_batch_size\n" in text
    again = load_config(SftConfig, [write(text, "b.yaml")])
    assert again.config == resolved.config
    assert again.notes == []


def test_null_trains_all_weights(write):
    for file in ({"model": {"lora": None}}, {"lora": None}, {"model": {"lora": {"r": 8}}, "lora": None}):
        if file.get("model", {}).get("lora") is None:
            assert changed(load_config(SftConfig, [write(file)]).config) == {"lora.lora_rank": 0}
        else:
            assert "given twice" in problems(files=[write(file)])[0]
    for word in ("lora=null", "model.lora=null", "use_peft=false"):
        assert changed(resolve(word).config) == {"lora.lora_rank": 0}
    assert changed(resolve(files=[write("lora: {}\n")]).config) == {}
    assert "null to train all weights" in problems("model.lora=8")[0]
    assert changed(load_config(RagConfig, [write("lora:\n")]).config) == {}


def test_the_block_of_adapters_may_stand_alone_and_mixed(write):
    block = "lora:\n  r: 4\n  target_modules: all-linear\n  lora_alpha: 8\n  lora_dropout: 0.2\n"
    assert changed(load_config(SftConfig, [write(block)]).config) == {
        "lora.lora_rank": 4, "lora.lora_alpha": 8.0, "lora.lora_dropout": 0.2,
    }  # fmt: skip


# --- one key at a time -------------------------------------------------------------------------------------------------

ONE = [
    ("train.bf16=true", {"loop.mixed_precision": "bf16"}),
    ("train.fp16=true", {"loop.mixed_precision": "fp16"}),
    ("train.bf16=false", {"loop.mixed_precision": "no"}),
    ("train.group_by_length=false", {"batches.length_grouping": False}),
    ("train.group_by_length=null", {}),
    ("train.train_sampling_strategy=random", {"batches.length_grouping": False}),
    ("train.train_sampling_strategy=sequential", {"batches.length_grouping": False, "data.shuffle": False}),
    ("train.train_sampling_strategy=group_by_length", {}),
    ("train.lr_scheduler_type=linear", {"optim.lr_scheduler": "linear"}),
    ("train.lr_scheduler_type=constant", {"optim.lr_scheduler": "constant", "optim.warmup_steps": 0}),
    ("train.lr_scheduler_type=constant_with_warmup", {"optim.lr_scheduler": "constant"}),
    ("train.max_steps=-1", {}),
    ("max_steps=-1", {}),
    ("train.max_steps=7", {"loop.max_steps": 7}),
    ("train.num_train_epochs=2", {"loop.num_epochs": 2.0}),
    ("train.per_device_train_batch_size=3", {"loop.batch_size": 3}),
    ("train.optim=adamw_torch", {}),
    ("train.optim=adamw_torch_fused", {}),
    ("train.optim=adamw_hf", {}),
    ("train.optim=paged_adamw_8bit", {"optim.optimizer": "paged_adamw_8bit"}),
    ("train.optim=adamw_bnb_8bit", {"optim.optimizer": "adamw_8bit"}),
    ("train.optim=adamw_8bit", {"optim.optimizer": "adamw_8bit"}),
    ("train.optim=paged_adamw_32bit", {"optim.optimizer": "paged_adamw"}),
    ("train.optim=paged_adamw", {"optim.optimizer": "paged_adamw"}),
    ("optim=paged_adamw", {"optim.optimizer": "paged_adamw"}),
    ("train.warmup_steps=0.1", {"optim.warmup_ratio": 0.1}),
    ("warmup_steps=0.1", {"optim.warmup_ratio": 0.1}),
    ("train.warmup_steps=0", {"optim.warmup_ratio": 0.0}),
    ("train.warmup_steps=9", {"optim.warmup_steps": 9}),
    ("warmup_steps=0", {"optim.warmup_steps": 0}),
    ("train.report_to=none", {"run.trackers": ()}),
    ("train.report_to=wandb", {"run.trackers": ("wandb",)}),
    ("train.report_to=[wandb,tensorboard]", {"run.trackers": ("wandb", "tensorboard")}),
    ("use_wandb=true", {"run.trackers": ("tensorboard", "wandb")}),
    ("use_wandb=false", {}),
    ("train.eval_strategy=no", {}),
    ("train.eval_strategy=steps", {"loop.eval_steps": 10}),
    ("train.evaluation_strategy=steps", {"loop.eval_steps": 10}),
    ("train.eval_strategy=epoch", {}),
    ("train.save_strategy=no", {"loop.save_steps": None}),
    ("train.save_strategy=steps", {}),
    ("train.save_strategy=epoch", {}),
    ("train.gradient_checkpointing=true", {"model.gradient_checkpointing": "on"}),
    ("gradient_checkpointing=false", {"model.gradient_checkpointing": "off"}),
    ("gradient_checkpointing=on", {"model.gradient_checkpointing": "on"}),
    ("train.metric_for_best_model=eval_exact_match", {"loop.best_metric": "eval_em"}),
    ("train.metric_for_best_model=loss", {}),
    ("train.packing=true", {"batches.packing": True}),
    ("train.max_seq_length=99", {"prompt.max_length": 99}),
    ("max_seq_length=99", {"prompt.max_length": 99}),
    ("train.torch_compile=true", {"model.torch_compile": True}),
    ("train.push_to_hub=false", {}),
    ("push_to_hub=me/it", {"export.push_to_hub": "me/it"}),
    ("hfhub_tag=me/it", {"export.push_to_hub": "me/it"}),
    ("train.auto_find_batch_size=true", {}),
    ("train.seed=3", {"loop.seed": 3}),
    ("train.max_grad_norm=0.3", {"optim.max_grad_norm": 0.3}),
    ("train.adam_beta2=0.95", {"optim.adam_beta2": 0.95}),
    ("train.resume_from_checkpoint=true", {"loop.resume": "latest"}),
    ("resume_checkpoint=runs/a", {"loop.resume": "runs/a"}),
    ("resume_checkpoint=null", {}),
    ("limit=5", {"data.max_train_samples": 5, "data.shuffle": False}),
    ("shuffle=null", {}),
    ("shuffle=42", {"loop.seed": 42}),
    ("shuffle=false", {"data.shuffle": False}),
    ("model.torch_dtype=bfloat16", {"model.dtype": "bfloat16"}),
    ("model.torch_dtype=torch.float16", {"model.dtype": "float16"}),
    ("model.attn_implementation=sdpa", {"model.attention": "sdpa"}),
    ("model.instruction_in_prompt=true", {"prompt.instruction_in_prompt": True}),
    ("model.lora.use_dora=true", {"lora.use_dora": True}),
    ("model.lora.target_modules=[q_proj,v_proj]", {"lora.lora_targets": ("q_proj", "v_proj")}),
    ("model.quantization_config.load_in_4bit=true", {"model.load_in_4bit": True}),
    ("lora_r=4", {"lora.lora_rank": 4}),
    ("dev_split=0.2", {"data.dev_split": 0.2}),
]


@pytest.mark.parametrize(("word", "meant"), ONE, ids=[word for word, _ in ONE])
def test_one_key(word, meant, write):
    assert changed(resolve(word).config) == meant
    key, _, value = word.partition("=")
    assert changed(resolve(files=[write(f"{key}: {value}\n")]).config) == meant
    section, _, last = key.rpartition(".")
    if section == "train":
        nested = f"train:\n  {last}: {value}\n"
        assert changed(resolve(files=[write(nested)]).config) == meant
        flag = "--" + last.replace("_", "-")
        if aliases.find(SftConfig.aliases, last) is not None and last not in {
            leaf.name for leaf in fields.leaves(SftConfig).values()
        }:
            assert changed(resolve(flags={flag: value}).config) == meant


def test_two_keys_of_one_field(write):
    both = {"bf16": True, "fp16": False}
    for keys in (both, dict(reversed(both.items()))):
        assert changed(resolve(files=[write({"train": keys})]).config) == {"loop.mixed_precision": "bf16"}
    path = write({"train": {"bf16": True, "fp16": False}})
    assert changed(resolve("train.fp16=false", files=[path]).config) == {"loop.mixed_precision": "bf16"}
    assert changed(resolve("train.bf16=false", files=[path]).config) == {"loop.mixed_precision": "no"}
    assert changed(resolve("train.fp16=true", files=[path]).config) == {"loop.mixed_precision": "fp16"}
    assert "given twice" in problems(files=[write({"train": {"bf16": True, "fp16": True}})])[0]
    for keys in ({"eval_steps": 5, "eval_strategy": "no"}, {"evaluation_strategy": "no", "eval_steps": 5}):
        assert changed(resolve(files=[write({"train": keys})]).config) == {}
    keys = {"eval_strategy": "steps", "eval_steps": 5, "logging_steps": 3}
    assert changed(resolve(files=[write({"train": keys})]).config)["loop.eval_steps"] == 5
    assert changed(resolve("eval_steps=5", files=[write({"train": {"eval_strategy": "no"}})]).config) == {
        "loop.eval_steps": 5
    }
    keys = {"warmup_steps": 0, "warmup_ratio": 0.2}
    assert changed(resolve(files=[write({"train": keys})]).config) == {"optim.warmup_ratio": 0.2}
    keys = {"report_to": "wandb"}
    assert changed(resolve("use_wandb=true", files=[write({"train": keys})]).config) == {"run.trackers": ("wandb",)}
    assert changed(resolve("limit=3", files=[write("shuffle: 8\n")]).config) == {
        "data.max_train_samples": 3, "loop.seed": 8,
    }  # fmt: skip
    assert changed(resolve("train.seed=1", "shuffle=8").config) == {"loop.seed": 1}


TARGETS = ("ragfit.models.hf.HFTrain", "peft.LoraConfig", "transformers.BitsAndBytesConfig")
VALUES = ("true", "false", "1", "0.5", "none", "lora", "causal_lm", "nf4", "6.0", "bitsandbytes", "main", "bfd", "nll",
          "adamw_torch", "linear", "steps", "random", "loss", "float32", "sdpa")  # fmt: skip


@pytest.mark.parametrize("section", sorted({"", *aliases.parents(SftConfig.aliases)}))
def test_every_alias_takes_a_value_and_null(section, write):
    table = fields.leaves(SftConfig)
    keys = [key for key in SftConfig.aliases if key.rpartition(".")[0] == section]
    assert keys
    for key in keys:
        alias = SftConfig.aliases[key]
        assert set(alias.fields) <= set(table), key
        accepted = False
        for value in (TARGETS if key.endswith("_target_") else VALUES) if not alias.null else ("null",):
            path = write(f"{key}: {value}\n")
            try:
                resolved = resolve(files=[path])
            except ConfigError as error:
                said = error.message
                assert f"{path}:1" in said, key
            else:
                accepted = True
                assert len(resolved.notes) <= 1
                break
        assert accepted, key
        if not alias.null:
            resolved = resolve(files=[write(f"{key}: null\n")])
            assert (changed(resolved.config), resolved.notes) == ({}, []), key


def test_references_are_not_taken_for_texts(write):
    path = write("train:\n  output_dir: ${experiment}/x\nbest_metric: ${a}\n")
    assert problems("limit=${b:c}", files=[path]) == [
        f"train.output_dir = '${{experiment}}/x' ({path}:2): ${{experiment}} is not looked up here: write the value",
        f"loop.best_metric = '${{a}}' ({path}:3): ${{a}} is not looked up here: write the value",
        "limit = '${b:c}' (argument): ${b:c} is not looked up here: write the value",
    ]


def test_blocks_of_hydra(write):
    assert changed(resolve("hydra.run.dir=.", "+hydra.job.name=a").config) == {}
    resolved = resolve(files=[write({"defaults": ["_self_"], "hydra": {"run": {"dir": "."}, "job": None}})])
    assert changed(resolved.config) == {}
    assert len(resolved.notes) == 1
    assert "hydra is without effect" in resolved.notes[0]
    assert load_config(RagConfig, [write({"defaults": ["_self_"]})]).config == RagConfig()
    found = problems(files=[write({"defaults": ["base", "_self_"]})])
    assert "a.yaml:1" in found[0]
    assert "--config" in found[0]


# --- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = [
    ("model._target_", "os.system", "accepted, as its own: ragfit.models.hf.HFTrain"),
    ("_target_", "ragfit.models.hf.HFTrain", "this key may stand at model._target_"),
    ("train._target_", "transformers.TrainingArguments", "ragtrain builds nothing by its name"),
    ("model.quantization_config._target_", "torch.load", "transformers.bitsandbytesconfig"),
    ("train.optim", "adafactor", "adamw_torch, adamw_torch_fused"),
    ("train.lr_scheduler_type", "polynomial", "constant_with_warmup"),
    ("train.eval_strategy", "sometimes", "no, steps or epoch"),
    ("train.bf16", "perhaps", "true or false"),
    ("train.push_to_hub", "true", "push_to_hub=OWNER/NAME"),
    ("train.deepspeed", "ds.json", "every process holds the whole model"),
    ("train.label_smoothing_factor", "0.1", "not smoothed"),
    ("train.num_train_epochs", "many", "a number above 0"),
    ("train.gruop_by_length", "true", "did you mean train.group_by_length?"),
    ("train.mask_mode", "trl", "mask_mode belongs to prompt.mask_mode"),
    ("model.lora.rank", "8", "did you mean lora.lora_rank?"),
    ("model.lora.bias", "all", "expected none"),
    ("model.lora.peft_type", "IA3", "adapters are LoRA's"),
    ("model.lora.modules_to_save", "[lm_head]", "only adapters are trained"),
    ("model.max_sequence_length", "8", "did you mean model.max_sequence_len?"),
    ("model.quantization_config", "8bit", "expected a mapping"),
    ("model.quantization_config.bnb_4bit_quant_type", "fp4", "NF4"),
    ("lora", "8", "null to train all weights"),
    ("outptu_key", "a", "did you mean data.output_key?"),
]


@pytest.mark.parametrize(("key", "value", "words"), REFUSED, ids=[key for key, _, _ in REFUSED])
def test_refusals_have_their_place(key, value, words, write):
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    path = write(nested)
    found = problems(files=[path])
    assert len(found) == 1, found
    assert f"{path}:{len(key.split('.'))}" in found[0]
    assert words in found[0]
    assert words in problems(f"{key}={value}")[0]


def test_everything_wrong_at_once(write):
    path = write(
        "model:\n  _target_: a.B\n  max_sequence_len: 0\ntrain:\n  optim: sgd\n  learning_rate: fast\n  fp61: true\n"
    )
    assert problems("data_fiel=x", files=[path], flags={"--lora-r": "x", "--per-device-train-bach-size": "2"}) == [
        f"model._target_ = 'a.B' ({path}:2): ragtrain builds nothing by its name; accepted, as its own: "
        "ragfit.models.hf.HFTrain, ragfoundry.models.hf.HFTrain",
        f"train.optim = 'sgd' ({path}:5): is not among what ragtrain has: adamw_torch, adamw_torch_fused, adamw_hf, adamw, "
        "paged_adamw, paged_adamw_32bit, adamw_8bit, adamw_bnb_8bit, paged_adamw_8bit",
        f"train.fp61 = 'true' ({path}:7): unknown key; did you mean train.fp16?",
        "data_fiel = 'x' (argument): unknown key; did you mean data_file?",
        "--per-device-train-bach-size 2: unknown flag; did you mean --per-device-train-batch-size?",
        f"prompt.max_length = '0' ({path}:3 as model.max_sequence_len): expected a whole number above 0",
        "lora.lora_rank = 'x' (flag as --lora-r): expected a whole number at least 0",
        f"optim.learning_rate = 'fast' ({path}:6 as train.learning_rate): expected a number above 0, or null",
    ]


def test_a_field_in_both_languages_is_given_twice(write):
    path = write("batch_size: 2\ntrain:\n  per_device_train_batch_size: 4\n")
    assert problems(files=[path]) == [
        f"loop.batch_size = '4' ({path}:3): given twice in this file, first on line 1",
    ]
    assert changed(resolve("batch_size=3", files=[write("train: {per_device_train_batch_size: 4}")]).config) == {
        "loop.batch_size": 3
    }


def test_tags_that_build_objects_are_refused(write):
    path = write("train:\n  optim: !!python/object/apply:os.system [ls]\n")
    assert "is refused" in problems(files=[path])[0]


def test_other_commands_do_not_know_them():
    assert "no such section" in problems("train.learning_rate=1", command=RagConfig)[0]
    assert "unknown flag" in problems(flags={"--per-device-train-batch-size": "2"}, command=RagConfig)[0]


# --- flags -------------------------------------------------------------------------------------------------------------


def test_flags_of_other_programs():
    flags = {
        "--per-device-train-batch-size": "2", "--max-seq-length": "64", "--data-file": "d.jsonl", "--lora-r": "4",
        "--bf16": None, "--no-group-by-length": None, "max_steps": "-1",
    }  # fmt: skip
    resolved = resolve(flags=flags)
    assert changed(resolved.config) == {
        "loop.batch_size": 2, "prompt.max_length": 64, "data.train_data": Path("d.jsonl"), "lora.lora_rank": 4,
        "loop.mixed_precision": "bf16", "batches.length_grouping": False,
    }  # fmt: skip
    assert resolved.origins["lora.lora_rank"] == "flag as --lora-r"
    assert resolve(flags={"--bf16": None}).notes == ["command line: --bf16 is loop.mixed_precision here"]


# --- notes -------------------------------------------------------------------------------------------------------------


def test_notes_are_few_and_only_for_what_is_foreign(write):
    assert resolve("batch_size=2", "max_steps=-1", files=[write("loop: {seed: 3}\nshuffle: null\n")]).notes == []
    assert resolve("train.group_by_length=true").notes == [
        "command line: train.group_by_length is batches.length_grouping here"
    ]
    assert resolve("train.eval_strategy=epoch").notes == [
        "command line: train.eval_strategy: evaluations are counted in steps (loop.eval_steps); without it there is one, "
        "at the end"
    ]
    many = {"train": dict.fromkeys(("disable_tqdm", "do_train", "ddp_timeout", "tf32", "do_eval"), True)}
    path = write(many)
    assert resolve(files=[path]).notes == [
        f"{path}: without effect here: train.disable_tqdm, train.do_train, train.ddp_timeout, train.tf32, train.do_eval"
    ]
