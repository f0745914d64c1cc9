"""Keys of TRL and transformers that would fail after a run's start here, or that would change
nothing: refused, with the way out.

The tables hold a reason for each key that must keep its default. The machine's part is tried: an
optimizer's package, a schedule with its settings, the Hub.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.trainer_pt_utils import AcceleratorConfig

from rea_core.clients import http_errors

ONE_BY_ONE = "rows are trained one by one"
NOT_CUT = "rows over max_length are left out, not cut"


def _all(keys: str, value: Any) -> dict[str, Any]:
    """Each of the keys, which stand in one text, with the value."""
    return dict.fromkeys(keys.split(), value)


# Of all three programs.
COMMON = {
    "model_init_kwargs": "the model is loaded by model_name_or_path, model_revision, dtype and "
    "attn_implementation",
    **_all(
        """
        use_liger_kernel liger_kernel_config torch_compile torch_compile_backend
        torch_compile_mode
        """,
        "the trainers exchange the model's forward pass themselves",
    ),
    "use_cache": "training needs no cache of keys and values",
    "auto_find_batch_size": "it would change the rows of a step silently; lower "
    "per_device_train_batch_size instead",
    **_all("include_for_metrics batch_eval_metrics", "no metrics are computed from predictions"),
    "label_names": "labels are those of the rows",
    **_all(
        "hub_strategy hub_always_push",
        "a run is published once, with all of its results, when it ends",
    ),
    "optim_target_modules": "only optimizers that do not go with adapters look at it",
}
REINFORCEMENT = COMMON | {
    **_all(
        """
        cache_implementation use_transformers_continuous_batching use_transformers_paged
        transformers_continuous_batching_config vllm_mode vllm_model_impl vllm_enable_sleep_mode
        vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port
        vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
        vllm_tensor_parallel_size ds3_gather_for_generation max_tool_calling_iterations
        """,
        "responses are sampled by policy_server, as rea_rl.vllm_server starts it",
    ),
    **_all(
        "log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo",
        "every response is recorded under output_dir/rollouts",
    ),
    **_all(
        "train_sampling_strategy length_column_name data_seed",
        "the order of problems follows seed",
    ),
    **_all(
        """
        prediction_loss_only eval_do_concat_batches eval_use_gather_object
        eval_accumulation_steps bf16_full_eval fp16_full_eval
        """,
        "evaluation samples responses and computes no loss",
    ),
    **_all(
        "label_smoothing_factor average_tokens_across_devices",
        "the loss is loss_type's own",
    ),
    **_all(
        "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg",
        "the loss vespo is not supported",
    ),
    "neftune_noise_alpha": "the policy is trained as it is sampled, without noise",
    "remove_unused_columns": "rewards read the columns",
}
SUPERVISED = COMMON | {
    **_all(
        "dataset_text_field dataset_kwargs eos_token completion_only_loss assistant_only_loss",
        "rows are encoded as they are, with the tokenizer's own template and tokens",
    ),
    **_all("packing packing_strategy eval_packing padding_free", ONE_BY_ONE),
    "truncation_mode": NOT_CUT,
}
PREFERENCE = COMMON | {
    "padding_free": ONE_BY_ONE,
    "truncation_mode": NOT_CUT,
    "sync_ref_model": "the reference model is the base model, without the adapter",
    "neftune_noise_alpha": "chosen and rejected completions must see one model",
    "label_smoothing_factor": "the losses of preferences do not take it; label_smoothing is theirs",
}
# Keys that mean something only if another one has such a value.
DEPENDENT = {
    **_all("ref_model_mixup_alpha ref_model_sync_steps", ("sync_ref_model", (True,))),
    **_all(
        "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
        ("use_adaptive_entropy", (True,)),
    ),
    **_all("sapo_temperature_neg sapo_temperature_pos", ("loss_type", ("sapo",))),
    **_all("hub_model_id hub_private_repo hub_revision", ("push_to_hub", (True,))),
    "precompute_ref_batch_size": ("precompute_ref_log_probs", (True,)),
    "f_alpha_divergence_coef": ("f_divergence_type", ("alpha_divergence",)),
}
# Keys of one of the programs whose value TRL looks at in the first step only.
LEVELS = ("token", "sequence")
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
PREFERENCE_LOSSES = """
    sigmoid sigmoid_norm hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired
    apo_zero apo_down discopop sft
""".split()
CHECKPOINT_KEYS = """
    use_reentrant preserve_rng_state context_fn determinism_check debug early_stop selective
""".split()
NEUTRAL_SAMPLING = {
    "top_p": (1.0,),
    "top_k": (0, -1, None),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
}
# Metrics of an evaluation that may say which checkpoint is best.
EVALUATED = {
    "rl": """
        rollout/accuracy reflection/density rollout/num_tokens rollout/num_think_tokens
        rollout/truncated
    """.split(),
    "sft": "mean_token_accuracy loss entropy".split(),
    "dpo": """
        rewards/accuracies rewards/margins rewards/chosen mean_token_accuracy logps/chosen
        loss rewards/rejected logps/rejected entropy
    """.split(),
}
SMALLER_IS_BETTER = """
    rollout/num_tokens rollout/num_think_tokens rollout/truncated loss entropy
    rewards/rejected logps/rejected
""".split()


def check_defaults(config: Any, reasons: Mapping[str, str]) -> None:
    """Raise ValueError for a key that must keep its default, or does nothing without another."""
    defaults = {f.name: default_of(f) for f in dataclasses.fields(config)}
    changed = {key for key, default in defaults.items() if getattr(config, key) != default}
    for key in [key for key in reasons if key in changed]:
        raise ValueError(
            f"{key} is {_shown(getattr(config, key))}, but {reasons[key]}: leave it out"
        )
    for key, (other, values) in DEPENDENT.items():
        if key in changed and getattr(config, other) not in values:
            raise ValueError(
                f"{key} is {_shown(getattr(config, key))}, which means something only with "
                f"{other}: {_shown(values[0])}, and it is {_shown(getattr(config, other))}: leave "
                f"{key} out, or change {other}"
            )


def check_values(config: Any) -> None:
    """Raise ValueError for values that only the first step would look at."""
    allowed = {"importance_sampling_level": LEVELS, "f_divergence_type": DIVERGENCES}
    if isinstance(losses := getattr(config, "loss_type", None), list):
        allowed |= {"train_sampling_strategy": ("random", "sequential")}  # pairs have no one length
        if unknown := [name for name in losses if name not in PREFERENCE_LOSSES]:
            raise ValueError(f"loss_type has {unknown}; it takes of {', '.join(PREFERENCE_LOSSES)}")
        if config.use_weighting and losses != ["sigmoid"]:
            raise ValueError(
                f"use_weighting is true, but loss_type is {losses}: TRL weighs the loss sigmoid "
                "alone; change one"
            )
    for key, values in allowed.items():
        if (value := getattr(config, key, values[0])) not in values:
            raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(values)}")
    if isinstance(file := config.accelerator_config, str) and not file.startswith("{"):
        if not Path(file).is_file():
            raise ValueError(f"accelerator_config: there is no file {file}; correct or drop it")
    if config.deepspeed and "RANK" not in os.environ and find_spec("mpi4py") is None:
        raise ValueError(
            "deepspeed is given, but no launcher started this process; leave it out, and launch "
            "with accelerate and recipes/accelerate_configs/zero2.yaml or zero3.yaml"
        )
    for key in config._VALID_DICT_FIELDS:
        _as_dict(config, key)
    for key, known in (
        ("gradient_checkpointing_kwargs", CHECKPOINT_KEYS),
        ("accelerator_config", [f.name for f in dataclasses.fields(AcceleratorConfig)]),
    ):
        given = _as_dict(config, key)
        names = given if isinstance(given, dict) else ()
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{key} has {unknown}; it takes of {', '.join(known)}")


def _as_dict(config: Any, key: str) -> Any:
    """Value of a key, read from JSON if a flag gave it."""
    value = getattr(config, key)
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{key} is {value!r}, which is no JSON ({error}); write {{"name": value}}'
        ) from error


def check_sampling(config: Any) -> None:
    """Raise ValueError for samplers that hide tokens from the importance correction."""
    if not config.vllm_importance_sampling_correction:
        return
    for key, neutral in NEUTRAL_SAMPLING.items():
        if (value := getattr(config, key)) not in neutral:
            raise ValueError(
                f"{key} is {value}, but vllm_importance_sampling_correction is true: the server's "
                "log-probs would be of a truncated vocabulary, and the ratio to the trainer's "
                f"wrong; leave {key} out, or set vllm_importance_sampling_correction: false and "
                "max_rollout_lag: 0"
            )


def check_best_metric(config: Any, program: str) -> None:
    """Choose the metric that says which checkpoint is best; ValueError for one that none has."""
    evaluates = config.eval_strategy != "no"
    if config.load_best_model_at_end and not evaluates:
        raise ValueError(
            "load_best_model_at_end is true, but eval_strategy is 'no': no checkpoint can be the "
            "best; set eval_strategy: steps"
        )
    if config.metric_for_best_model is None and evaluates and program == "rl":
        config.metric_for_best_model = EVALUATED["rl"][0]
    if config.metric_for_best_model is None:
        return
    metric = config.metric_for_best_model.removeprefix("eval_")
    if metric not in EVALUATED[program]:
        raise ValueError(
            f"metric_for_best_model is {config.metric_for_best_model!r}, which no evaluation has; "
            f"name one of {', '.join(EVALUATED[program])}"
        )
    if config.greater_is_better is None:
        config.greater_is_better = metric not in SMALLER_IS_BETTER


def check_machine(config: Any) -> None:
    """Raise ValueError for an optimizer, a schedule or a dataloader that cannot be made, and for
    several GPUs in one process; for complete configs."""
    if config.n_gpu > 1:
        raise ValueError(
            f"one process sees {config.n_gpu} GPUs, and would split each batch among them; launch "
            f"it with accelerate (--num_processes {config.n_gpu}), or let it see one "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
    _try_optimizer(config)
    _try_schedule(config)
    if config.dataloader_persistent_workers and not config.dataloader_num_workers:
        raise ValueError(
            "dataloader_persistent_workers is true, but dataloader_num_workers is 0; set it, or "
            "leave this out"
        )
    if getattr(config, "activation_offloading", False) and config.use_cpu:
        raise ValueError(
            "activation_offloading is true, but use_cpu too: there is no GPU to free; leave it out"
        )
    accelerator = config.accelerator_config
    for key in ("dispatch_batches", "split_batches"):
        if getattr(accelerator, key, None):
            raise ValueError(
                f"accelerator_config has {key}: true, but each rank reads its own rows: leave it "
                "out"
            )


def check_hub(config: Any) -> None:
    """Raise ValueError for `push_to_hub` if the Hub is not reached, or does not know the user."""
    if not config.push_to_hub:
        return
    from huggingface_hub import HfApi

    try:
        HfApi(token=config.hub_token).whoami()
    except http_errors() as error:
        raise ValueError(
            "push_to_hub is true, but the Hub does not take the run "
            f"({' '.join(str(error).split())[:160]}); leave it out, and upload output_dir later"
        ) from error


def _try_optimizer(config: Any) -> None:
    import torch
    from transformers import Trainer

    name = str(getattr(config.optim, "value", config.optim))
    within = "layerwise" in name or "lomo" in name
    try:
        make, settings = Trainer.get_optimizer_cls_and_kwargs(config)
        make([torch.zeros(1, requires_grad=True)], **settings)
    except ImportError as error:
        raise ValueError(
            f"optim is {name}, which is not installed ({' '.join(str(error).split())[:120]}); "
            "install it, or take adamw_torch"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"optim is {name}: {' '.join(str(error).split())[:200]}; correct it, or take "
            "adamw_torch"
        ) from error
    if within:
        raise ValueError(
            f"optim is {name}, which steps within the backward pass, unchecked; take adamw_torch"
        )


def _try_schedule(config: Any) -> None:
    import torch
    from transformers import get_scheduler

    name = str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    settings = config.lr_scheduler_kwargs or {}
    try:
        get_scheduler(name, optimizer, config.get_warmup_steps(100), 100, settings)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"lr_scheduler_type is {name} with lr_scheduler_kwargs {settings}, which makes no "
            f"schedule ({' '.join(str(error).split())[:160]}); correct one of them"
        ) from error


def default_of(field: dataclasses.Field) -> Any:
    """Default of a dataclass's field; None if it has to be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _shown(value: Any) -> str:
    return (
        str(value).lower() if isinstance(value, bool) else "empty" if value is None else str(value)
    )
