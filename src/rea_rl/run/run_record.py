"""The record of a run as a file, and the comparison of a command with it.

A run writes `run_record.json` into its output_dir when it starts, and into each checkpoint:
settings, digests of its rows and of its models, batch, length, and kind of launch. What cannot
change results may differ (`FREE`, `EVALUATION`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from rea_core.json_text import read_json
from rea_core.row_files import digest, write_json
from rea_rl.run.card import code_version
from rea_rl.run.monitors import MonitorKeys
from rea_rl.run.trl_keys import default_of

Record = dict[str, Any]
Values = Mapping[str, Any]  # of keys
RECORD = "run_record.json"
FIELDS = {*"program launch ranks batch steps rows data models settings".split()}
LOGGING = """
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name
    project trackio_space_id trackio_bucket_id trackio_static_space_id log_completions debug
    log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo
    skip_memory_metrics
""".split()
SAVING = """
    output_dir resume_from_checkpoint save_only_model save_strategy save_steps save_on_each_node
    save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id
    hub_strategy hub_always_push hub_revision do_train do_eval do_predict
""".split()
EVALUATION = """
    eval_strategy eval_steps eval_delay eval_on_start eval_do_concat_batches eval_packing
    eval_use_gather_object eval_accumulation_steps per_device_eval_batch_size batch_eval_metrics
    prediction_loss_only include_for_metrics bf16_full_eval fp16_full_eval num_generations_eval
    eval_dataset_name dataset_eval_split max_eval_problems max_eval_rows metric_for_best_model
    greater_is_better
""".split()
SERVERS = """
    policy_server reflection_server max_concurrent_requests request_timeout request_retries
    server_deadline ddp_timeout stage_batch_size label_until_decided verifier_workers
    verifier_timeout
""".split()
# Up to the rounding of sums, as the number of ranks.
MEMORY = """
    torch_threads tokens_per_forward rows_per_forward recompute gradient_checkpointing
    gradient_checkpointing_kwargs activation_offloading torch_empty_cache_steps use_cache
    local_rank dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataset_num_proc dataloader_prefetch_factor dataloader_multiprocessing_context
    ds3_gather_for_generation ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
    ddp_static_graph ddp_backend precompute_ref_log_probs precompute_ref_batch_size
    cudnn_attention
""".split()
MONITORING = [f.name for f in dataclasses.fields(MonitorKeys)]
FREE = LOGGING + SAVING + SERVERS + MEMORY + MONITORING
# Keys whose meaning is compared in their place: rows, models, a measured threshold, batch,
# and length.
DATA = """
    dataset_name dataset_config dataset_train_split problem_column answer_column prompt_template
    chat_template_kwargs system_prompt prefill
""".split()
MODELS = ("model_name_or_path", "model_revision", "reflection_model")
BATCH = """
    per_device_train_batch_size gradient_accumulation_steps prompts_per_step rows_per_step
    generation_batch_size steps_per_generation
""".split()
COMPARED_OTHERWISE = [*DATA, *MODELS, *BATCH]
COMPARED_OTHERWISE += "tokens_per_reflection_file verifier max_steps num_train_epochs".split()
MODEL_FILES = (".json", ".jinja", ".model", ".txt", ".py", ".safetensors", ".bin")
BLOCK = 1 << 20  # bytes
READ_WHOLE = 256 * BLOCK  # of a larger file of weights one block in sixteen is read
LOSSES_OF_A_PASS = {"bnpo", "sft", "aot", "aot_unpaired"}  # of TRL: means over tokens, or sorted
REPLICAS = ("one process", "ddp")  # launches that read each other's optimizer state


def make_record(
    program: str,
    parts: Sequence[Any],
    rows: Iterable[Values],
    measured: Values | None = None,
) -> Record:
    """The record of this command's run, as JSON gives it back."""
    args = next(part for part in parts if hasattr(part, "output_dir"))
    fields = {f.name: (part, f) for part in parts for f in dataclasses.fields(part)}
    values = {name: _plain(getattr(part, name)) for name, (part, _) in fields.items()}
    settings = _settings(values, measured or {})
    # of bf16 and fp16, or of accelerate's launcher if the recipe has none of them
    settings["mixed_precision"] = args.mixed_precision
    lines = [json.dumps(row, sort_keys=True) for row in rows]
    record = {
        "program": program,
        "launch": launch_kind(args),
        "ranks": args.world_size * max(1, args.n_gpu),
        "batch": {key: values[key] for key in BATCH[:2]},
        "steps": {key: values[key] for key in ("max_steps", "num_train_epochs")},
        "rows": {"number": len(lines), "digest": digest(lines)},
        "data": {key: values[key] for key in DATA if key in values},
        "models": _used_models(values),
        "settings": settings,
        "code": code_version(),
        "given": sorted(
            key
            for key, (_, field) in fields.items()
            if key in settings and values[key] != _plain(default_of(field))
        ),
    }
    return json.loads(json.dumps(record))


def launch_kind(args: Any) -> str:
    """`one process`, `ddp`, `zero2`, `zero3` or `fsdp`: who can read the optimizer's state."""
    if args.deepspeed_plugin is not None:
        return f"zero{args.deepspeed_plugin.zero_stage}"
    is_asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    if args.fsdp_plugin_args is not None or is_asked:
        return "fsdp"
    return REPLICAS[args.world_size > 1]


def _used_models(values: Values) -> dict[str, dict[str, str]]:
    """Models that have a part in the run, by the key that names them."""
    used = {
        "model_name_or_path": identify(
            "model_name_or_path", values["model_name_or_path"], values["model_revision"]
        )
    }
    if values.get("revision") and values["construction"] != "serial":
        used["reflection_model"] = identify("reflection_model", values["reflection_model"])
    return used


def identify(key: str, name: str, revision: str | None = None) -> dict[str, str]:
    """Name and digest of a model: of a Hub model the commit. Raises ValueError for none."""
    from rea_core.models import check_model

    check_model(name)
    if Path(name).is_dir():
        files = sorted(
            path for path in Path(name).iterdir() if path.suffix in MODEL_FILES and path.is_file()
        )
        found = digest(f"{path.name} {_file_digest(path)}" for path in files)
        return {"name": name, "digest": found}

    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        config = cached_file(name, "config.json", revision=revision)
        return {"name": name, "digest": extract_commit_hash(config, None)}
    except OSError as error:
        raise ValueError(
            f"{key}: {' '.join(str(error).split())}; give a Hub id that can be reached, or a folder"
        ) from error


def _file_digest(path: Path) -> str:
    """Of a file's size and bytes; of a large one parts all over it: 15 GB are not read twice."""
    import xxhash

    size = path.stat().st_size
    hasher = xxhash.xxh3_128(str(size).encode())
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
            if size > READ_WHOLE:
                file.seek(15 * BLOCK, os.SEEK_CUR)
    return hasher.hexdigest()


def _settings(values: Values, measured: Values) -> dict[str, Any]:
    """Keys and values that must stay, in an order that means nothing."""
    free = {*FREE, *COMPARED_OTHERWISE, *(() if _steered_by_evaluation(values) else EVALUATION)}
    settings = {key: value for key, value in values.items() if key not in free} | measured
    if isinstance(targets := settings.get("lora_target_modules"), list):
        settings["lora_target_modules"] = sorted(targets)
    if names := settings.get("reward_funcs"):
        weights = settings.pop("reward_weights") or [1.0] * len(names)
        weighed = zip(names, weights, strict=True)
        settings["reward_funcs"] = sorted(
            name if weight == 1 else f"{weight:g} {name}" for name, weight in weighed
        )
    return settings


def _steered_by_evaluation(values: Values) -> bool:
    """Whether evaluations have a say in the weights."""
    return values["load_best_model_at_end"] or values["lr_scheduler_type"] in (
        "reduce_lr_on_plateau",
        "greedy",
    )


def _plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


# --- Comparison -----------------------------------------------------------------------------------


def check_same(before: Record, now: Record, run: str | Path) -> None:
    """Raise ValueError with old and new values unless the command `now` may continue `before`."""
    changes = [
        f"{key} was {_show(old)} and is {_show(new)}"
        for compare in (
            _compare_launch,
            _compare_batch,
            _compare_steps,
            _compare_inputs,
            _compare_settings,
        )
        for key, old, new in compare(before, now)
    ]
    if changes:
        raise ValueError(
            f"{run} was made with other settings: {'; '.join(changes)}. Give the old "
            f"{'values' if changes[1:] else 'value'} to continue that run, or another output_dir "
            "to begin a new one"
        )


Changes = Iterable[tuple[str, Any, Any]]


def _compare_launch(before: Record, now: Record) -> Changes:
    """Shards of an optimizer's state are read by as many ranks of the same kind only."""
    old, new = ((each["launch"], each["ranks"]) for each in (before, now))
    if before["program"] != now["program"]:
        yield "the program", f"rea_rl.{before['program']}", f"rea_rl.{now['program']}"
    if old != new and not {old[0], new[0]} <= {*REPLICAS}:
        yield (
            "the launch",
            *(kind if kind == REPLICAS[0] else f"{kind} on {n} ranks" for kind, n in (old, new)),
        )


def _compare_batch(before: Record, now: Record) -> Changes:
    """Rows of a step; how they are dealt, if the loss or the end of an epoch depends on it."""
    old, new = ((*each["batch"].values(), each["ranks"]) for each in (before, now))
    rows = [per_device * accumulation * ranks for per_device, accumulation, ranks in (old, new)]
    if rows[0] != rows[1]:
        products = (
            f"{' x '.join(map(str, factors))} = {n}"
            for factors, n in zip((old, new), rows, strict=True)
        )
        yield "per_device_train_batch_size x gradient_accumulation_steps x ranks", *products
    elif old[0] != new[0] and _is_of_a_forward_pass(now, rows[0]):
        yield "per_device_train_batch_size", old[0], new[0]
    elif old[2] != new[2] and not _ranks_share_steps(now, rows[0]):
        yield "the number of ranks", old[2], new[2]


def _is_of_a_forward_pass(record: Record, rows_per_step: int) -> bool:
    """Whether the loss compares or averages what is in one forward pass, so that a step depends
    on how rows are dealt."""
    settings = record["settings"]
    names = {*settings["loss_type"]} if record["program"] == "dpo" else {settings["loss_type"]}
    bonus = (
        settings.get("entropy_coef")
        or settings.get("use_adaptive_entropy")
        or settings["router_aux_loss_coef"]
    )
    uneven = record["program"] == "dpo" and record["rows"]["number"] % rows_per_step
    return bool(
        names & LOSSES_OF_A_PASS or bonus or uneven or settings.get("top_entropy_quantile", 1) < 1
    )


def _ranks_share_steps(record: Record, rows_per_step: int) -> bool:
    """Whether a step has the same rows and weights on any number of ranks: several ranks fill an
    epoch's last one up."""
    settings = record["settings"]
    if record["program"] == "grpo":
        return True
    even = record["rows"]["number"] % rows_per_step == 0
    return (
        even
        and settings["average_tokens_across_devices"]
        and settings["train_sampling_strategy"] != "batch_rebalance"
    )


def _compare_steps(before: Record, now: Record) -> Changes:
    """The length of a run may grow, if the learning rate of a step does not depend on it."""
    (key, old), (now_key, new) = length(before), length(now)
    if key != now_key:
        key, old, new = "max_steps", before["steps"]["max_steps"], now["steps"]["max_steps"]
    if old != new and not (grows := 0 < old < new):
        yield key, old, f"{new}, and a run can only be made longer"
    elif old != new and grows and not _schedule_is_open(now["settings"]):
        yield key, old, f"{new}, which changes the {now['settings']['lr_scheduler_type']} schedule"


def length(record: Record) -> tuple[str, float]:
    """Key that says how long a run is, and its value."""
    key = "max_steps" if record["steps"]["max_steps"] > 0 else "num_train_epochs"
    return key, record["steps"][key]


def _schedule_is_open(settings: Values) -> bool:
    """Whether the learning rate of a step is the same in a longer run: a warm-up below 1 is a
    share of all steps."""
    if settings["lr_scheduler_type"] == "constant":
        return True
    whole_warmup = settings["warmup_steps"] == 0 or settings["warmup_steps"] >= 1
    return (
        settings["lr_scheduler_type"] in ("constant_with_warmup", "inverse_sqrt") and whole_warmup
    )


def _compare_inputs(before: Record, now: Record) -> Changes:
    """Rows and models by what is in them: a folder may be moved."""
    if before["rows"] != now["rows"]:
        keys = [key for key, value in now["data"].items() if before["data"].get(key) != value]
        yield from ((key, before["data"].get(key), now["data"][key]) for key in keys)
        if not keys:
            name, rows = now["data"]["dataset_name"], (before["rows"], now["rows"])
            yield (
                "dataset_name",
                *(f"{name} ({each['number']} rows, {each['digest']})" for each in rows),
            )
    for key in MODELS:
        old, new = (each["models"].get(key) for each in (before, now))
        if old and new and old["digest"] != new["digest"]:
            yield key, *(f"{each['name']} ({each['digest']})" for each in (old, new))


def _compare_settings(before: Record, now: Record) -> Changes:
    """Keys that the program still has. One that the old record lacks has come since: its default
    is what was done before."""
    for key, new in sorted(now["settings"].items()):
        if key not in before["settings"] and key in now["given"]:
            yield key, "not there", new
        elif (old := before["settings"].get(key, new)) != new and (
            key[:5] != "lora_" or now["settings"]["use_peft"]
        ):
            yield key, old, new


def _show(value: Any) -> str:
    """A value within one line."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:190]}..."


# --- Files ----------------------------------------------------------------------------------------


def record_of(checkpoint: Path) -> Record | None:
    """Record of a checkpoint, or of the run that it lies in."""
    return read_record(checkpoint) or read_record(checkpoint.parent)


def read_record(folder: Path) -> Record | None:
    """The record in a folder, or None. Raises ValueError for a file that is no record."""
    if not (path := folder / RECORD).is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or not FIELDS <= record.keys():
        raise ValueError(f"{path} is not the record of a run; give another output_dir")
    return record


def write_record(folder: str | Path, record: Record) -> None:
    """Write a record, unless it is there."""
    if read_record(Path(folder)) != record:
        write_json(Path(folder) / RECORD, record)
