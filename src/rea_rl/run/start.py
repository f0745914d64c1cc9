"""The run in one block of the log, before it trains: half of all wrong runs would be seen
here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from transformers.trainer_pt_utils import get_model_param_count

from rea_rl.configs import REARLConfig
from rea_rl.run.run_record import launch_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer
    from trl import GRPOTrainer

BACKENDS = ("flash", "mem_efficient", "math", "cudnn")  # of torch's scaled_dot_product_attention


def start_block(trainer: Trainer, checkpoint: str | None) -> str:
    """At most 15 lines: a title, then names with texts. For the first rank, before a step."""
    lines = [("model", _model(trainer)), ("trained", _trained(trainer)), *_lines_of(trainer)]
    lines += [("attention", _attention(trainer)), ("launch", _launch(trainer))]
    lines += [
        ("resumed from", checkpoint or "nothing: a new run"),
        ("output_dir", trainer.args.output_dir),
    ]
    return "\n".join(["this run", *(f"  {name:<17} {text}" for name, text in lines)])


def _lines_of(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Lines that depend on the kind of training: rows, batch, rewards, servers."""
    args = trainer.args
    if isinstance(args, REARLConfig):
        yield from _reinforcement(trainer)
        return
    yield (
        "data",
        f"{_number(len(trainer.train_dataset), 'row')}, padded: only responses of rea_rl.grpo are "
        "packed",
    )
    size, passes = args.per_device_train_batch_size, args.gradient_accumulation_steps
    dealt, ranks = _number(size, "row"), _number(args.world_size, "rank")
    rows = size * passes * args.world_size
    yield "a step", f"{dealt} x {passes} accumulated x {ranks} = {rows} rows"


def _reinforcement(trainer: GRPOTrainer) -> Iterator[tuple[str, str]]:
    args = trainer.args
    yield (
        "data",
        f"{_number(len(trainer.train_dataset), 'problem')}; responses are {_packing(trainer)}",
    )
    prompts = args.generation_batch_size // args.num_generations // args.world_size
    paths = f"{args.num_generations} responses"
    paths += " and as many revisions" if args.rows_per_path == 2 else ""
    rows = prompts * trainer.num_generations * args.world_size
    dealt, ranks = _number(prompts, "prompt"), _number(args.world_size, "rank")
    yield "a step", f"{dealt} x ({paths}) x {ranks} = {rows} rows"
    weighed = zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True)
    names = (name if weight == 1 else f"{weight:g} x {name}" for name, weight in weighed)
    yield "rewards", ", ".join(names)
    yield "policy server", _servers(args.policy_servers)
    if args.needs_labels:
        yield "reflection server", f"{_servers(args.reflection_servers)}: {args.reflection_model}"


def _servers(urls: list[str]) -> str:
    return "; ".join(f"{url}, vLLM {server_version(url)}" for url in urls)


def server_version(url: str) -> str:
    """Version of a server's vLLM."""
    from rea_rl.rollout.server_answers import told_by

    try:
        return str(told_by(url, "/version", key=None)["version"])
    except (ConnectionError, ValueError, KeyError):  # another program that speaks as vLLM does
        return "of a version that it does not say"


def _packing(trainer: GRPOTrainer) -> str:
    if trainer.packed_step is not None:
        return f"packed: shared prefixes once, {trainer.args.tokens_per_forward} tokens a pass"
    return f"padded: {trainer.padded_because or 'packing is none'}"


def _model(trainer: Trainer) -> str:
    """Name, revision or digest, class, size and type."""
    model = _unwrapped(trainer)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = base.config._name_or_path
    if trainer.plan is not None:
        name += f" ({trainer.plan.record['models']['model_name_or_path']['digest']})"
    return f"{name}, {type(base).__name__}, {str(base.dtype).removeprefix('torch.')}"


def _trained(trainer: Trainer) -> str:
    """Number of weights that are trained, and the modules with an adapter, by their last name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = _unwrapped(trainer)
    trained, total = (
        f"{get_model_param_count(model, trainable_only=only):,}" for only in (True, False)
    )
    if not hasattr(model, "peft_config"):
        return f"{trained} of {total} parameters: the whole model"
    names = Counter(
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    )
    config = model.peft_config["default"]
    matched = ", ".join(f"{name} {count}" for name, count in sorted(names.items()))
    return (
        f"{trained} of {total} parameters: LoRA r {config.r}, alpha {config.lora_alpha} on "
        f"{names.total()} modules ({matched})"
    )


def _attention(trainer: Trainer) -> str:
    """Implementation, and what torch may not choose for it."""
    off = [name for name in BACKENDS if not getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]
    return (
        f"{_unwrapped(trainer).config._attn_implementation}; switched off: "
        f"{', '.join(off) or 'nothing'}"
    )


def _launch(trainer: Trainer) -> str:
    args = trainer.args
    return f"{launch_kind(args)}, {_number(args.world_size, 'rank')}, {args.device.type}"


def _number(n: int, word: str) -> str:
    return f"{n:,} {word}{'s' * (n != 1)}"


def _unwrapped(trainer: Trainer) -> PreTrainedModel:
    return trainer.accelerator.unwrap_model(trainer.model)
