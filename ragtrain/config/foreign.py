"""What the keys of RAG-FiT's YAML, transformers' TrainingArguments, TRL's SFTConfig, PEFT and bitsandbytes mean here.

Keys as RAG-FiT 2024-2025, transformers 4.4x and 5.x, TRL 0.8-1.16 and PEFT 0.17-0.21 have them, those included that
transformers 5 dropped (``group_by_length``, ``evaluation_strategy``, ``logging_dir`` and others). What would
change the training and cannot be had is refused; what only concerns their programs is without effect.
"""

from __future__ import annotations

from collections.abc import Mapping

from ragtrain.config import foreign_values as values
from ragtrain.config.aliases import Alias, choice, ignored, only, refused, rename

OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw": "adamw",
    "paged_adamw": "paged_adamw",
    "paged_adamw_32bit": "paged_adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
BEST = {
    "loss": "eval_loss", "eval_loss": "eval_loss", "em": "eval_em", "exact_match": "eval_em", "eval_em": "eval_em",
    "eval_exact_match": "eval_em", "f1": "eval_f1", "eval_f1": "eval_f1",
}  # fmt: skip
DTYPES = {
    "auto": "auto", "float32": "float32", "fp32": "float32", "torch.float32": "float32", "bfloat16": "bfloat16",
    "bf16": "bfloat16", "torch.bfloat16": "bfloat16", "float16": "float16", "fp16": "float16", "torch.float16": "float16",
}  # fmt: skip

_OWN_NAMES = {
    "loop": (
        "gradient_accumulation_steps", "logging_steps", "max_steps", "save_steps", "save_total_limit", "seed", "eval_steps",
    ),
    "optim": (
        "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "warmup_ratio",
    ),
    "run": ("output_dir",),
    "batches": ("packing",),
    "model": ("gradient_checkpointing", "torch_compile"),
    "prompt": ("max_length",),
    "export": ("push_to_hub",),
}  # fmt: skip
_HERE = "ragtrain does so, or has no need of it"
_WITHOUT_EFFECT = (
    "average_tokens_across_devices", "batch_eval_metrics", "bf16_full_eval", "data_seed", "dataloader_drop_last",
    "dataloader_in_order", "dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "dataset_batch_size", "dataset_kwargs", "dataset_num_proc",
    "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph",
    "ddp_timeout", "disable_tqdm", "dispatch_batches", "do_eval", "do_predict", "do_train", "eval_accumulation_steps",
    "eval_delay", "eval_do_concat_batches", "eval_on_start", "eval_packing", "eval_use_gather_object", "fp16_backend",
    "fp16_full_eval", "fp16_opt_level", "full_determinism", "gradient_checkpointing_kwargs", "half_precision_backend",
    "hub_always_push", "hub_private_repo", "hub_revision", "hub_strategy", "ignore_data_skip", "include_for_metrics",
    "include_inputs_for_metrics", "include_num_input_tokens_seen", "include_tokens_per_second", "label_names",
    "length_column_name", "liger_kernel_config", "local_rank", "log_level", "log_level_replica", "log_on_each_node",
    "logging_first_step", "logging_nan_inf_filter", "logging_strategy", "pad_to_multiple_of", "padding_free",
    "prediction_loss_only", "ray_scope", "remove_unused_columns", "save_on_each_node", "save_only_model",
    "save_safetensors", "shuffle_dataset", "skip_memory_metrics", "split_batches", "tf32", "torch_compile_backend",
    "torch_compile_mode", "torch_empty_cache_steps", "truncation_mode", "use_cache", "use_legacy_prediction_loop",
    "use_liger_kernel",
)  # fmt: skip
_NOT_HERE = {
    "accelerator_config": "launch with accelerate or torchrun; the loop is ragtrain's own",
    "assistant_only_loss": "the answer is trained, nothing else (prompt.mask_mode)",
    "chat_template_path": "the tokenizer's chat template is used; for models without one give a template file",
    "dataset_text_field": "prompt and answer are separate fields: input_key and output_key",
    "deepspeed": "every process holds the whole model",
    "fsdp": "every process holds the whole model",
    "fsdp_config": "every process holds the whole model",
    "label_smoothing_factor": "labels are not smoothed in supervised fine-tuning",
    "lr_scheduler_kwargs": "schedules take warmup_steps or warmup_ratio only",
    "model_init_kwargs": "give dtype, attention, load_in_8bit or load_in_4bit",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "no_cuda": "hide the devices with CUDA_VISIBLE_DEVICES= instead",
    "optim_args": "give adam_beta1, adam_beta2, adam_epsilon",
    "optim_target_modules": "there is no GaLore here",
    "parallelism_config": "every process holds the whole model",
    "router_aux_loss_coef": "no loss of the router is added",
    "use_cpu": "hide the devices with CUDA_VISIBLE_DEVICES= instead",
}

TRAIN: Mapping[str, Alias] = {
    **{name: rename(f"{section}.{name}") for section, names in _OWN_NAMES.items() for name in names},
    **{name: ignored() for name in _WITHOUT_EFFECT},
    **{name: refused(why) for name, why in _NOT_HERE.items()},
    "activation_checkpointing": rename("model.gradient_checkpointing"),
    "auto_find_batch_size": Alias(("loop.on_out_of_memory",), values.auto_batch),
    "bf16": values.precision("bf16"),
    "completion_only_loss": only("true", why="prompts are never trained"),
    "eval_strategy": Alias(("loop.eval_steps",), values.eval_strategy),
    "evaluation_strategy": Alias(("loop.eval_steps",), values.eval_strategy),
    "fp16": values.precision("fp16"),
    "greater_is_better": ignored("every metric knows its direction"),
    "group_by_length": rename("batches.length_grouping"),
    "hub_model_id": ignored("nothing is pushed but with push_to_hub=OWNER/NAME"),
    "hub_token": ignored("the hub's own login counts; a token does not belong into a file"),
    "load_best_model_at_end": ignored("final_model is the last step's; checkpoints/best is the best one"),
    "logging_dir": ignored("TensorBoard's files are in runs/ of the run folder"),
    "loss_type": only("nll", "chunked_nll", why="the loss is that of the answer's tokens"),
    "lr_scheduler_type": Alias(("optim.lr_scheduler",), values.scheduler),
    "max_seq_length": rename("prompt.max_length"),
    "metric_for_best_model": choice("loop.best_metric", BEST),
    "num_train_epochs": rename("loop.num_epochs"),
    "optim": choice("optim.optimizer", OPTIMIZERS),
    "overwrite_output_dir": ignored("a run of the same configuration goes on; overwrite=true starts afresh"),
    "packing_strategy": only("bfd", why="rows stay whole and are packed by best fit, decreasing"),
    "per_device_eval_batch_size": ignored("evaluation chooses its batches itself"),
    "per_device_train_batch_size": rename("loop.batch_size"),
    "report_to": Alias(("run.trackers",), values.report_to),
    "resume_from_checkpoint": rename("loop.resume"),
    "run_name": ignored("a run is called after its folder"),
    "save_strategy": Alias(("loop.save_steps",), values.save_strategy),
    "train_sampling_strategy": Alias(("batches.length_grouping",), values.sampling),
    "warmup_steps": Alias(("optim.warmup_steps",), values.warmup_steps),
}
"""Keys of ``train:``, that is of TrainingArguments and SFTConfig."""

LORA: Mapping[str, Alias] = {
    **{name: rename(f"lora.{name}") for name in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")},
    "_target_": only("peft.loraconfig", why="ragtrain builds nothing by its name"),
    "r": rename("lora.lora_rank"),
    "target_modules": rename("lora.lora_targets"),
    "bias": only("none", why="adapters leave biases as they are"),
    "exclude_modules": refused("adapters go on every layer that lora_targets names"),
    "fan_in_fan_out": Alias(remark="found from the layer's class", silent=True),
    "inference_mode": only("false", why="adapters are trained"),
    "init_lora_weights": only("true", why="adapters begin as PEFT's do by default"),
    "layer_replication": refused("layers are not repeated"),
    "layers_pattern": refused("adapters go on every layer that lora_targets names"),
    "layers_to_transform": refused("adapters go on every layer that lora_targets names"),
    "loftq_config": refused("adapters begin as PEFT's do by default"),
    "lora_bias": refused("adapters have no biases"),
    "modules_to_save": refused("only adapters are trained, or all weights with lora: null"),
    "peft_type": only("lora", why="adapters are LoRA's"),
    "rank_pattern": refused("every adapter has the same rank"),
    "alpha_pattern": refused("every adapter has the same scale"),
    "task_type": only("causal_lm", why="the network is a causal language model"),
}
"""Keys of ``model.lora:``, that is of PEFT's LoraConfig."""

QUANTIZATION: Mapping[str, Alias] = {
    "_target_": only("transformers.bitsandbytesconfig", why="ragtrain builds nothing by its name"),
    "load_in_8bit": values.quantized("model.load_in_8bit"),
    "load_in_4bit": values.quantized("model.load_in_4bit"),
    "bnb_4bit_compute_dtype": ignored("it is computed in the arithmetic of mixed_precision"),
    "bnb_4bit_quant_storage": ignored(_HERE),
    "bnb_4bit_quant_type": only("nf4", why="4 bits are NF4"),
    "bnb_4bit_use_double_quant": only("true", why="constants of 4-bit blocks are quantised too"),
    "llm_int8_enable_fp32_cpu_offload": refused("the base stays on its device"),
    "llm_int8_has_fp16_weight": refused("weights are held in 8 bits"),
    "llm_int8_skip_modules": refused("every linear layer but the head is held in fewer bits"),
    "llm_int8_threshold": only("6.0", "6", why="the threshold of outliers is LLM.int8()'s"),
    "quant_method": only("bitsandbytes", why="bases are quantised by bitsandbytes"),
}
"""Keys of ``model.quantization_config:``, that is of BitsAndBytesConfig."""

MODEL: Mapping[str, Alias] = {
    "_target_": Alias(convert=values.target, remark=f"only {' or '.join(values.TARGETS)}", silent=True),
    "attn_implementation": rename("model.attention"),
    "completion_start": rename("prompt.completion_start"),
    "device_map": ignored("each process holds the model on its device"),
    "instruction_in_prompt": rename("prompt.instruction_in_prompt"),
    "low_cpu_mem_usage": ignored(_HERE),
    "lora": Alias(("lora.lora_rank",), values.lora, null=True),
    "max_sequence_len": rename("prompt.max_length"),
    "model_max_length": rename("prompt.max_length"),
    "quantization_config": refused("expected a mapping with load_in_8bit or load_in_4bit"),
    "torch_dtype": choice("model.dtype", DTYPES),
    "trust_remote_code": ignored("no code of a model's repository is run"),
    "use_cache": ignored(_HERE),
}
"""Keys of ``model:`` in RAG-FiT that are not our own."""

TOP: Mapping[str, Alias] = {
    "data_file": rename("data.train_data"),
    "experiment": ignored("a run is called after its folder"),
    "hfhub_tag": rename("export.push_to_hub"),
    "limit": Alias(("data.max_train_samples", "data.shuffle"), values.limit),
    "lora": MODEL["lora"],
    "resume_checkpoint": rename("loop.resume"),
    "use_wandb": Alias(("run.trackers",), values.use_wandb),
    "wandb_entity": ignored("wandb takes it from WANDB_ENTITY"),
    # TRL's command line
    "lora_r": rename("lora.lora_rank"),
    "lora_target_modules": rename("lora.lora_targets"),
    "lora_task_type": LORA["task_type"],
    "lora_modules_to_save": LORA["modules_to_save"],
    "model_revision": only("main", why="a revision is not chosen; give the folder of a snapshot"),
    "bnb_4bit_quant_type": QUANTIZATION["bnb_4bit_quant_type"],
    "use_bnb_nested_quant": QUANTIZATION["bnb_4bit_use_double_quant"],
    "use_peft": Alias(("lora.lora_rank",), values.use_peft),
}
"""Keys at the top level of RAG-FiT's YAML that are not our own, and flags of TRL's."""


def _others(table: Mapping[str, Alias]) -> dict[str, Alias]:
    """Return the entries of a table whose name is not also that of the field they set."""
    return {
        name: alias for name, alias in table.items()
        if not name.startswith("_") and not (alias.fields and alias.fields[0].rpartition(".")[2] == name)
    }  # fmt: skip


SFT_ALIASES: Mapping[str, Alias] = {
    **_others(TRAIN),  # without their section, as flags
    **_others(MODEL),
    **TOP,
    **{f"train.{name}": alias for name, alias in TRAIN.items()},
    **{f"model.{name}": alias for name, alias in MODEL.items()},
    **{f"model.lora.{name}": alias for name, alias in LORA.items()},
    **{f"model.quantization_config.{name}": alias for name, alias in QUANTIZATION.items()},
    **{f"lora.{name}": alias for name, alias in _others(LORA).items()},
}
"""Everything that ``train sft`` understands besides its own names."""
