"""Keys of TRL and transformers that could only fail later, or that would change nothing, are
refused when a recipe is read."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from broken import LONGEST_MESSAGE

from rea_rl import dpo, grpo, sft
from rea_rl.configs import REARLConfig, REARLDPOConfig, REARLSFTConfig
from rea_rl.run.trl_keys import PREFERENCE, REINFORCEMENT, SUPERVISED

RL = ["--config", "recipes/miniature/config_GRPO.yaml"]
SFT = ["--config", "recipes/miniature/config_SFT.yaml"]
DPO = ["--config", "recipes/miniature/config_RPO.yaml"]
PROGRAMS = {"rl": (grpo, RL), "sft": (sft, SFT), "dpo": (dpo, DPO)}
EVALUATES = "--eval_strategy steps --eval_steps 1"

REFUSED = [
    # Each boolean and choice that failed at the start, in the first step, or at the first
    # evaluation.
    *[
        (program, f"--{key} true", (f"{key} is true", "leave it out"))
        for program in PROGRAMS
        for key in (
            "use_liger_kernel",
            "auto_find_batch_size",
            "torch_compile",
            "use_cache",
            "batch_eval_metrics",
        )
    ],
    *[
        (program, f"--optim {name}", (f"optim is {name}", "not installed", "adamw_torch"))
        for program in PROGRAMS
        for name in (
            "adamw_8bit",
            "paged_adamw_32bit",
            "lion_8bit",
            "adamw_torch_4bit",
            "schedule_free_adamw",
            "lomo",
        )
    ],
    ("rl", "--optim galore_adamw", ("optim is galore_adamw", "adamw_torch")),
    ("rl", "--optim grokadamw", ("optim is grokadamw", "grokadamw", "adamw_torch")),
    *[
        (
            program,
            f"--lr_scheduler_type {name}",
            (f"lr_scheduler_type is {name}", "lr_scheduler_kwargs", "correct one"),
        )
        for program in PROGRAMS
        for name in ("cosine_with_min_lr", "warmup_stable_decay", "cosine_warmup_with_min_lr")
    ],
    ("sft", '--lr_scheduler_kwargs {"min_lrr":0.1}', ("min_lrr", "lr_scheduler_kwargs")),
    *[
        (
            program,
            "--dataloader_persistent_workers true",
            ("dataloader_persistent_workers is true", "dataloader_num_workers"),
        )
        for program in PROGRAMS
    ],
    *[
        (
            program,
            '--accelerator_config {"dispatch_batches":true}',
            ("dispatch_batches: true", "leave it out"),
        )
        for program in PROGRAMS
    ],
    *[
        (
            program,
            f"{EVALUATES} --metric_for_best_model nonsense",
            ("metric_for_best_model is 'nonsense'", "name one of"),
        )
        for program in PROGRAMS
    ],
    (
        "rl",
        f"{EVALUATES} --metric_for_best_model loss",
        ("metric_for_best_model is 'loss'", "rollout/accuracy"),
    ),
    (
        "sft",
        f"{EVALUATES} --metric_for_best_model rollout/accuracy",
        ("rollout/accuracy", "mean_token_accuracy"),
    ),
    *[
        (
            program,
            "--load_best_model_at_end true --eval_strategy no",
            ("load_best_model_at_end is true", "eval_strategy"),
        )
        for program in PROGRAMS
    ],
    (
        "rl",
        "--remove_unused_columns true",
        ("remove_unused_columns is true", "rewards read", "leave it out"),
    ),
    ("dpo", "--sync_ref_model true", ("sync_ref_model is true", "base model", "leave it out")),
    (
        "sft",
        "--activation_offloading true",
        ("activation_offloading is true", "use_cpu", "leave it out"),
    ),
    ("sft", "--eval_packing true", ("eval_packing is true", "one by one", "leave it out")),
    ("sft", "--padding_free true", ("padding_free is true", "one by one", "leave it out")),
    ("dpo", "--padding_free true", ("padding_free is true", "one by one", "leave it out")),
    (
        "rl",
        "--packing shared_prefix --cast_lm_head_to_fp32 true",
        ("cast_lm_head_to_fp32 is True", "packing: shared_prefix"),
    ),
    (
        "rl",
        "--importance_sampling_level group",
        ("importance_sampling_level is 'group'", "token, sequence"),
    ),
    ("rl", "--top_entropy_quantile 1.5 --packing none", ("top_entropy_quantile", "1.5")),
    (
        "rl",
        '--gradient_checkpointing_kwargs {"reentrant":false}',
        ("gradient_checkpointing_kwargs has ['reentrant']", "use_re"),
    ),
    (
        "sft",
        '--accelerator_config {"split":true}',
        ("accelerator_config has ['split']", "split_batches"),
    ),
    ("sft", "--adam_beta1 1.5", ("optim is adamw_torch_fused", "beta", "correct it")),
    ("dpo", "--loss_type sigmoit sft", ("loss_type has ['sigmoit']", "sigmoid")),
    ("dpo", "--f_divergence_type kl", ("f_divergence_type is 'kl'", "reverse_kl")),
    (
        "dpo",
        "--use_weighting true",
        ("use_weighting is true", "loss_type is ['sigmoid', 'sft']", "change one"),
    ),
    (
        "dpo",
        "--train_sampling_strategy group_by_length",
        ("train_sampling_strategy is 'group_by_length'", "random"),
    ),
    (
        "dpo",
        "--label_smoothing_factor 0.1",
        ("label_smoothing_factor is 0.1", "label_smoothing is theirs", "leave it out"),
    ),
    *[
        (
            program,
            "--lr_scheduler_kwargs {min_lr:1}",
            ("lr_scheduler_kwargs is '{min_lr:1}'", "no JSON", "write"),
        )
        for program in PROGRAMS
    ],
    # Numbers that are none, or that no step, file or process can have.
    *[
        (program, f"--{key} {number}", (f"{key} is {number}", "finite number"))
        for program in PROGRAMS
        for key, number in (
            ("learning_rate", "inf"),
            ("weight_decay", "inf"),
            ("save_steps", "nan"),
        )
    ],
    ("rl", "--reward_weights 1 nan", ("reward_weights is [1.0, nan]", "finite number")),
    *[
        ("sft", f"--{key} {number}", (f"{key} is {number}", words))
        for key, number, words in (
            ("num_train_epochs", "inf", "finite number"),
            ("save_steps", "0", "greater than 0"),
            ("eval_steps", "-1", "greater than 0"),
            ("save_total_limit", "0", "greater than 0"),
            ("pad_to_multiple_of", "0", "greater than 0"),
            ("dataloader_num_workers", "-1", "0 or more"),
            ("neftune_noise_alpha", "-1", "0 or more"),
            ("label_smoothing_factor", "2", "from 0 to 1"),
        )
    ],
    *[
        (program, "--accelerator_config nothing.json", ("there is no file nothing.json",))
        for program in PROGRAMS
    ],
    *[
        (
            program,
            '--deepspeed {"zero_optimization":{"stage":2}}',
            ("deepspeed is given, but no launcher", "zero2.yaml"),
        )
        for program in PROGRAMS
    ],
    ("sft", "--output_dir=", ("output_dir is empty", "name a folder")),
    # Silently ignored.
    ("rl", "--loss_type vespo", ("loss_type is 'vespo'", "dapo")),
    ("rl", "--vespo_k_pos 3.0", ("vespo_k_pos is 3.0", "leave it out")),
    ("rl", "--vllm_mode server", ("vllm_mode is server", "policy_server", "leave it out")),
    ("rl", "--vllm_server_port 1", ("vllm_server_port is 1", "policy_server", "leave it out")),
    (
        "rl",
        "--cache_implementation static",
        ("cache_implementation is static", "policy_server", "leave it out"),
    ),
    ("rl", "--use_transformers_continuous_batching true", ("policy_server", "leave it out")),
    (
        "rl",
        "--train_sampling_strategy group_by_length",
        ("train_sampling_strategy is", "seed", "leave it out"),
    ),
    ("rl", "--data_seed 3", ("data_seed is 3", "seed", "leave it out")),
    (
        "rl",
        "--label_smoothing_factor 0.1",
        ("label_smoothing_factor is 0.1", "loss_type", "leave it out"),
    ),
    (
        "rl",
        "--neftune_noise_alpha 5",
        ("neftune_noise_alpha is 5.0", "without noise", "leave it out"),
    ),
    (
        "rl",
        "--bf16_full_eval true",
        ("bf16_full_eval is true", "samples responses", "leave it out"),
    ),
    (
        "rl",
        "--num_completions_to_print 3",
        ("num_completions_to_print is 3", "rollouts", "leave it out"),
    ),
    ("rl", "--max_tool_calling_iterations 2", ("max_tool_calling_iterations is 2", "leave it out")),
    (
        "rl",
        "--sapo_temperature_pos 2.0",
        ("sapo_temperature_pos is 2.0", "loss_type: sapo", "leave"),
    ),
    (
        "rl",
        "--entropy_target 0.3",
        ("entropy_target is 0.3", "use_adaptive_entropy: true", "leave"),
    ),
    ("rl", "--hub_model_id x/y", ("hub_model_id is x/y", "push_to_hub: true", "leave")),
    (
        "rl",
        '--model_init_kwargs {"dtype":"bfloat16"}',
        ("model_init_kwargs is", "model_name_or_path", "leave it out"),
    ),
    ("sft", "--eos_token x", ("eos_token is x", "tokens", "leave it out")),
    (
        "sft",
        "--truncation_mode keep_end",
        ("truncation_mode is keep_end", "max_length", "leave it out"),
    ),
    (
        "dpo",
        "--truncation_mode keep_end",
        ("truncation_mode is keep_end", "max_length", "leave it out"),
    ),
    (
        "dpo",
        "--precompute_ref_batch_size 2",
        ("precompute_ref_batch_size is 2", "precompute_ref_log_probs: true", "leave"),
    ),
    # The correction would compare log-probs of two vocabularies.
    (
        "rl",
        "--top_p 0.95",
        ("top_p is 0.95", "leave top_p out", "vllm_importance_sampling_correction: false"),
    ),
    (
        "rl",
        "--top_k 20",
        ("top_k is 20", "leave top_k out", "vllm_importance_sampling_correction: false"),
    ),
    ("rl", "--min_p 0.1", ("min_p is 0.1", "leave min_p out", "max_rollout_lag: 0")),
    (
        "rl",
        "--repetition_penalty 1.1",
        ("repetition_penalty is 1.1", "leave repetition_penalty out", "max_rollout_lag: 0"),
    ),
]


def read(program, flags):
    module, recipe = PROGRAMS[program]
    return module.parse_recipe([*recipe, "--report_to", "none", *flags.split()])


@pytest.mark.parametrize(
    ("program", "flags", "says"), REFUSED, ids=[f"{p}: {f}" for p, f, _ in REFUSED]
)
def test_a_key_that_cannot_be_is_refused_with_the_way_out(program, flags, says):
    with pytest.raises(ValueError) as refused:
        read(program, flags)
    message = str(refused.value)
    assert "\n" not in message and len(message) < LONGEST_MESSAGE, message
    assert not [part for part in says if part not in message], message


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("rl", "--top_p 0.95 --top_k 20 --vllm_importance_sampling_correction false"),
        ("rl", "--top_p 1.0 --top_k -1 --min_p 0.0 --repetition_penalty 1.0"),
        ("rl", f"{EVALUATES} --load_best_model_at_end true --save_steps 1 --save_strategy steps"),
        ("rl", f"{EVALUATES} --metric_for_best_model eval_rollout/num_tokens"),
        ("rl", "--loss_type sapo --packing none --sapo_temperature_pos 2.0"),
        ("rl", '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":1e-6}'),
        (
            "rl",
            '--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {"num_decay_steps":3}',
        ),
        (
            "sft",
            "--optim adafactor --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs "
            '{"min_lr_rate":0.1}',
        ),
        ("sft", f"{EVALUATES} --metric_for_best_model loss --save_strategy steps"),
        ("sft", "--loss_type dft --label_smoothing_factor 0.0 --neftune_noise_alpha 5"),
        ("dpo", f"{EVALUATES} --metric_for_best_model rewards/accuracies --save_strategy steps"),
        ("dpo", "--precompute_ref_log_probs true --precompute_ref_batch_size 2"),
        ("dpo", "--loss_type sigmoid --loss_weights 1.0 --use_weighting true"),
        ("dpo", "--f_divergence_type alpha_divergence --f_alpha_divergence_coef 0.5"),
    ],
)
def test_keys_that_work_stay(program, flags):
    read(program, flags)


def test_the_best_checkpoint_is_by_accuracy_unless_said():
    _, args, _ = read("rl", EVALUATES)
    assert (args.metric_for_best_model, args.greater_is_better) == ("rollout/accuracy", True)
    _, args, _ = read("rl", f"{EVALUATES} --metric_for_best_model rollout/num_tokens")
    assert args.greater_is_better is False
    _, args, _ = read("rl", "--eval_strategy no")
    assert args.metric_for_best_model is None


def test_the_hub_is_asked_before_anything_else(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for program in PROGRAMS:
        with pytest.raises(
            ValueError,
            match="push_to_hub is true, but the Hub does not take the run .*leave it out",
        ):
            read(program, "--push_to_hub true")


# What the programs read or hand on, or that is checked elsewhere. A new key of TRL or transformers
# has to be put here, or refused.
READ = {
    *(
        "bf16",
        "fp16",
        "tf32",
        "use_cpu",
        "gradient_checkpointing",
        "trust_remote_code",
        "full_determinism",
        "cudnn_attention",
    ),
    *(
        "logging_first_step",
        "log_on_each_node",
        "logging_nan_inf_filter",
        "disable_tqdm",
        "skip_memory_metrics",
    ),
    *(
        "include_num_input_tokens_seen",
        "save_only_model",
        "save_on_each_node",
        "enable_jit_checkpoint",
        "push_to_hub",
    ),
    *(
        "hub_private_repo",
        "load_best_model_at_end",
        "greater_is_better",
        "ignore_data_skip",
    ),
    *(
        "restore_callback_states_from_checkpoint",
        "dataloader_drop_last",
        "dataloader_pin_memory",
        "dataloader_in_order",
    ),
    *(
        "dataloader_persistent_workers",
        "remove_unused_columns",
        "eval_on_start",
        "ddp_find_unused_parameters",
    ),
    *(
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "do_train",
        "do_eval",
        "do_predict",
        "trackio_static_space_id",
    ),
    *(
        "average_tokens_across_devices",
        "bf16_full_eval",
        "fp16_full_eval",
        "prediction_loss_only",
        "shuffle_dataset",
    ),
    *(
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "disable_dropout",
        "activation_offloading",
        "use_weighting",
    ),
    *(
        "precompute_ref_log_probs",
        "sync_ref_model",
        "cast_lm_head_to_fp32",
        "use_vllm",
        "log_completions",
    ),
    *("mask_truncated_completions", "use_adaptive_entropy", "vllm_importance_sampling_correction"),
    *(
        "use_bias_correction_kl",
        "revision",
        "dynamic_sampling",
        "label_until_decided",
        "always_cut",
    ),
    "word_bounded_reflections",
}


def test_every_boolean_is_read_or_refused():
    for config, refused in (
        (REARLConfig, REINFORCEMENT),
        (REARLSFTConfig, SUPERVISED),
        (REARLDPOConfig, PREFERENCE),
    ):
        hints = typing.get_type_hints(config)
        booleans = {
            f.name
            for f in dataclasses.fields(config)
            if bool in (hints[f.name], *typing.get_args(hints[f.name]))
        }
        assert booleans <= READ | refused.keys(), config
        assert refused.keys() <= hints.keys(), config  # a key that is gone
