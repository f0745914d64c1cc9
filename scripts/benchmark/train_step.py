"""Compare the shared-prefix training step with TRL's steps, on one batch, in one run.

    python scripts/benchmark/train_step.py --preset miniature
    python scripts/benchmark/train_step.py --preset 7b --out docs/benchmarks/h200_train_step_7b.json

A model of the preset's dimensions gets random weights and LoRA (r 16, seven linear layers, frozen
base). The batch is made like REA-RL's: for each prompt G originals with log-normal lengths (median
2,500, at most 8,000 tokens), and G revisions, cut at 30 to 90 % of their originals and finished
with up to 256 tokens. Each variant computes loss and gradients once over all of it, without an
optimizer step:

    padded      as TRL does it: rows padded to the longest prompt and completion of the batch,
                shuffled, --micro_batch
                rows at a time, PEFT's layers, sdpa, gradient checkpointing
    unshared    one row at a time without padding, otherwise as `padded`
    trl_tree    as TRL's AsyncGRPO does it: its tree of shared prefixes, its attention layers,
                PEFT's layers, gradient checkpointing; its attention kernel comes from the Hub, so
                torch's varlen attention is in its place
    shared      prefix tree, fused layers, as little recomputation as memory allows
    unfused     the same with PEFT's layers
    recomputed  the same with gradient checkpointing of all layers
    packed      as `shared`, but without sharing: what fusing and packing bring alone

--groups 2 4 8 then measures `shared` and `packed` with so many originals and revisions a prompt.
unsloth has no row: its newest release (2026.10.9) wants TRL 1.15 or older.

All variants have TRL's fused head, which takes log-probs of trained tokens only. By default there
is no KL term, hence no reference pass, and TRL's extra pass for old log-probs is left out of
`padded` and `unshared`; --reference_pass adds both, and the KL term.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config
from trl.trainer.utils import add_fused_lm_head

sys.path.insert(0, str(Path(__file__).parent))
from serving import spread, versions
from trl_tree import fold_as_trl, kernel_name, trl_logps, trl_packing

from rea_core.json_text import read_json
from rea_rl.packing import attention as tree_attention
from rea_rl.packing.attention import TREE_ATTENTION, Tree
from rea_rl.packing.fused_lora import fuse_layers
from rea_rl.packing.prefix_tree import (
    PackedPaths,
    TokenPath,
    add_packed_forward,
    fold,
    packed_logps,
    plan,
)
from rea_rl.packing.recompute import Recompute

logger = logging.getLogger(__name__)

# vocabulary, hidden, intermediate, layers, heads, key-value heads; the first two are
# R1-Distill-Qwen's.
DIMENSIONS = {
    "7b": (152064, 3584, 18944, 28, 28, 4),
    "1.5b": (151936, 1536, 8960, 28, 12, 2),
    "miniature": (704, 192, 512, 4, 6, 2),
}
LENGTH_SCALE = {"7b": 1.0, "1.5b": 1.0, "miniature": 0.06}
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# In the order of measurement, with the time that a run of each may take, warm-up included, in
# multiples of a run of `shared`.
EXPECTED_SECONDS = {
    "shared": 1, "trl_tree": 4, "unshared": 4, "padded": 8, "recomputed": 2.5, "packed": 3,
    "unfused": 3,
}  # fmt: skip
TREES = ("shared", "trl_tree", "recomputed", "unfused")
BETA = 0.04
CUTS = Path(__file__).with_name("detector_cuts.json")


@dataclass
class Batch:
    """Responses with advantages; what a variant computes for them is collected in their order."""

    paths: list[TokenPath]
    advantages: torch.Tensor  # (B,)
    num_trained: int = field(init=False)

    def __post_init__(self):
        self.lengths = [len(path.ids) - path.num_prompt for path in self.paths]
        self.num_trained = sum(self.lengths)

    def loss(
        self, rows: list[int], logps: torch.Tensor, reference: torch.Tensor | None
    ) -> torch.Tensor:
        """DAPO-normalized loss of the trained tokens (M,) of `rows`; with one inner iteration
        the ratio is 1."""
        lengths = torch.tensor([self.lengths[i] for i in rows], device=logps.device)
        advantages = self.advantages[rows].to(logps.device).repeat_interleave(lengths)
        losses = -(logps - logps.detach()).exp() * advantages
        if reference is not None:
            difference = reference - logps
            losses = losses + BETA * (difference.exp() - difference - 1)
        return losses.sum() / self.num_trained


def make_batch(args: argparse.Namespace, vocabulary: int) -> Batch:
    """`args.prompts` groups of `args.group` originals and revisions, which alternate."""
    rng, shares = np.random.default_rng(args.seed), read_json(CUTS)["shares"]
    scale = LENGTH_SCALE[args.preset]

    def ids(low: float, high: float | None = None) -> np.ndarray:
        length = max(int(scale * (low if high is None else rng.uniform(low, high))), 2)
        return rng.integers(0, vocabulary, length)

    paths = []
    for _ in range(args.prompts):
        prompt = ids(80, 250)
        for _ in range(args.group):
            original = ids(min(rng.lognormal(np.log(2500), 0.8), 8000))
            share, _ = shares[rng.integers(len(shares))]
            kept = original[: int(len(original) * share)]
            for completion in (original, np.concatenate([kept, ids(60, 256)])):
                paths.append(TokenPath(np.concatenate([prompt, completion]), len(prompt)))
    return Batch(paths, torch.from_numpy(rng.normal(size=len(paths))).float())


def make_model(preset: str, device: torch.device, dtype: torch.dtype) -> PeftModel:
    """Random weights, made on the device in their dtype. LoRA's B is not zero, so that A has
    gradients too."""
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    sizes = dict(zip((*names, "num_key_value_heads"), DIMENSIONS[preset], strict=True))
    config = Qwen2Config(**sizes, max_position_embeddings=131072, tie_word_embeddings=False)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


# --- Variants: batch -> log-probs (M,) of its trained tokens; gradients stay in the model ---------


@dataclass
class Steps:
    """Ways to take a training step with one model; each returns detached log-probs in the
    batch's order."""

    model: PeftModel
    batch: Batch
    args: argparse.Namespace
    kept: Recompute  # of `shared` and `packed`
    recompute: Recompute | None = None  # of the variant in work

    def autocast(self) -> torch.autocast:
        """As the trainer: bf16 where the weights are."""
        dtype = self.model.dtype
        return torch.autocast(self.model.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def plain(self, micro_batch: int) -> torch.Tensor:
        """Padded micro-batches; with one row they have no padding."""
        order = list(range(len(self.batch.paths)))
        if micro_batch > 1:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(0)).tolist()
        parts: dict[int, torch.Tensor] = {}
        for start in range(0, len(order), micro_batch):
            rows = order[start : start + micro_batch]
            reference = None
            if self.args.reference_pass:
                with torch.no_grad():
                    self.forward_rows(rows)  # old log-probs
                    with self.model.disable_adapter():
                        reference = self.forward_rows(rows)
            logps = self.forward_rows(rows)
            self.batch.loss(rows, logps, reference).backward()
            split = logps.detach().split([self.batch.lengths[i] for i in rows])
            parts.update(zip(rows, split, strict=True))
        return torch.cat([parts[i] for i in range(len(order))])

    def forward_rows(self, rows: list[int]) -> torch.Tensor:
        """Log-probs of the trained tokens of `rows`, prompts padded on the left, completions on
        the right."""
        paths = [self.batch.paths[i] for i in rows]
        among = self.batch.paths if len(rows) > 1 else paths
        width = (
            max(path.num_prompt for path in among),
            max(len(path.ids) - path.num_prompt for path in among),
        )
        ids, mask = np.zeros((2, len(rows), sum(width)), dtype=np.int64)
        trained = np.zeros(ids.shape, dtype=bool)
        for i, path in enumerate(paths):
            begin = width[0] - path.num_prompt
            ids[i, begin : begin + len(path.ids)] = path.ids
            mask[i, begin : begin + len(path.ids)] = 1
            trained[i, width[0] : begin + len(path.ids)] = True
        ids, mask, trained = (
            torch.from_numpy(x).to(self.model.device) for x in (ids, mask, trained)
        )
        with self.autocast():
            output = self.model(
                input_ids=ids,
                attention_mask=mask if len(rows) > 1 else None,
                labels=ids.masked_fill(~trained, -100),
                fused_lm_head=True,
            )
        return output.log_probs[trained[:, 1:]]

    def tree(
        self, fold_rows: Callable[[list[TokenPath]], Any], packs: list[list[int]]
    ) -> torch.Tensor:
        """Packed responses, one forward and backward pass a pack."""
        parts: dict[int, torch.Tensor] = {}
        for rows in packs:
            packed = fold_rows([self.batch.paths[i] for i in rows])
            packed = packed.to(self.model.device) if isinstance(packed, PackedPaths) else packed
            reference = None
            if self.args.reference_pass:
                with torch.no_grad(), self.model.disable_adapter():
                    reference = self.forward_packed(packed)
            logps = self.forward_packed(packed)
            self.batch.loss(rows, logps, reference).backward()
            split = logps.detach().split([self.batch.lengths[i] for i in rows])
            parts.update(zip(rows, split, strict=True))
        return torch.cat([parts[i] for i in sorted(parts)])

    def forward_packed(self, packed: Any) -> torch.Tensor:
        """Log-probs of the trained tokens of the responses."""
        with self.autocast():
            if isinstance(packed, PackedPaths):
                return packed_logps(self.model, packed)[0][packed.token_index]
            return trl_logps(self.model, packed)


def fold_apart(paths: list[TokenPath]) -> PackedPaths:
    """Responses behind each other in one row, without sharing."""
    parts = [fold([path]) for path in paths]
    sizes = [part.input_ids.numel() for part in parts]
    offsets = np.cumsum([0, *sizes]).tolist()
    trained = np.cumsum([0, *(len(part.targets) for part in parts)]).tolist()

    def joined(values: list[torch.Tensor], starts: list[int]) -> torch.Tensor:
        return torch.cat([value + start for value, start in zip(values, starts, strict=False)])

    cu = torch.tensor(offsets, dtype=torch.int32)
    return PackedPaths(
        input_ids=torch.cat([part.input_ids for part in parts], dim=1),
        position_ids=torch.cat([part.position_ids for part in parts], dim=1),
        predictors=joined([part.predictors for part in parts], offsets),
        targets=torch.cat([part.targets for part in parts]),
        token_index=joined([part.token_index for part in parts], trained),
        tree=Tree(torch.arange(offsets[-1]), cu, cu, tuple((offset, offset) for offset in offsets)),
    )


def plan_apart(paths: list[TokenPath], budget: int) -> list[list[int]]:
    """Deal responses to passes by their whole lengths."""
    packs, load = [[]], 0
    for i, path in enumerate(paths):
        load += len(path.ids)
        if load > budget and packs[-1]:
            packs.append([])
            load = len(path.ids)
        packs[-1].append(i)
    return packs


def prepare(steps: Steps, name: str) -> Callable[[], torch.Tensor]:
    """Set the model up for a variant and return the variant."""
    model, budget = steps.model, steps.args.tokens_per_forward
    base = model.get_base_model()
    for module in model.modules():
        if module is not base:
            module.__dict__.pop("forward", None)  # fused forward functions
    if name in ("padded", "unshared"):
        base.set_attn_implementation("sdpa")
        steps.recompute = Recompute(base, "all", None)
        return partial(steps.plain, steps.args.micro_batch if name == "padded" else 1)
    if name == "trl_tree":
        base.set_attn_implementation(trl_packing().TREE_ATTENTION)
        steps.recompute = Recompute(base, "all", None)
        return partial(steps.tree, fold_as_trl, plan(steps.batch.paths, budget))
    base.set_attn_implementation(TREE_ATTENTION)
    if name != "unfused":
        fuse_layers(model)
    # PEFT's layers keep more, so what `auto` measured does not hold for them
    apart = name in ("recomputed", "unfused")
    steps.recompute = Recompute(base, "all", None) if apart else steps.kept
    steps.recompute.apply()
    if name == "packed":
        packs = plan_apart(steps.batch.paths, budget)
        return partial(steps.tree, fold_apart, packs)
    return partial(steps.tree, fold, plan(steps.batch.paths, budget))


# --- Measurement ----------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, if there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], torch.Tensor], model: PeftModel) -> tuple[float, torch.Tensor]:
    """Seconds of a step, from responses on the host to gradients, and its log-probs."""
    model.zero_grad(set_to_none=True)
    synchronize(model.device)
    start = time.perf_counter()
    logps = run()
    synchronize(model.device)
    return time.perf_counter() - start, logps


def gradient(model: PeftModel) -> torch.Tensor:
    """All gradients in one float32 vector."""
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two gradients, summed in float64."""
    first, second = first.double(), second.double()
    return float(first @ second / first.norm() / second.norm())


def product_tflops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of a plain matrix product of this machine, on random data."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    synchronize(device)
    return 10 * 2 * size**3 / (time.perf_counter() - start) / 1e12


def executed_tflop(steps: Steps, name: str, recomputed_share: float) -> float:
    """Operations of a step in 1e12: products of forward and backward pass, frozen weights have
    no gradients."""
    _, hidden, intermediate, layers, heads, kv_heads = DIMENSIONS[steps.args.preset]
    head = hidden // heads
    paths = steps.batch.paths
    longest = max(p.num_prompt for p in paths) + max(len(p.ids) - p.num_prompt for p in paths)
    pairs = sum(len(p.ids) ** 2 / 2 for p in paths)
    trained = steps.batch.num_trained
    tokens = sum(len(path.ids) for path in paths)
    if name == "padded":
        tokens, pairs = len(paths) * longest, len(paths) * longest**2
    elif name in TREES:
        packs = [
            fold([paths[i] for i in rows]) for rows in plan(paths, steps.args.tokens_per_forward)
        ]
        tokens = sum(packed.input_ids.numel() for packed in packs)
        trained = sum(len(packed.targets) for packed in packs)
        pairs = sum(float((packed.position_ids + 1).sum()) for packed in packs)
    weights = hidden * (2 * hidden + 2 * kv_heads * head + 3 * intermediate)
    projections = 2 * layers * weights * tokens * (2 + recomputed_share)
    attention = 4 * layers * hidden * pairs * (3.5 + recomputed_share)
    vocabulary = 4 * hidden * DIMENSIONS[steps.args.preset][0] * trained
    return (projections + attention + vocabulary) / 1e12


def _num_tokens(packed: Any) -> int:
    ids = packed.input_ids if isinstance(packed, PackedPaths) else packed["input_ids"]
    return ids.numel()


def warm_up(steps: Steps, name: str) -> None:
    """Load kernels; for a tree by its largest pass, which also measures memory for `auto`, else
    by short rows."""
    run = prepare(steps, name)
    if name in (*TREES, "packed"):
        fold_rows, packs = run.args
        sizes = [_num_tokens(fold_rows([steps.batch.paths[i] for i in rows])) for rows in packs]
        steps.recompute.begin_step(lambda: max(sizes))
        steps.tree(fold_rows, [packs[sizes.index(max(sizes))]])
        steps.recompute.begin_step(lambda: max(sizes))
    else:
        short = [
            TokenPath(path.ids[: path.num_prompt + 64], path.num_prompt)
            for path in steps.batch.paths[:4]
        ]
        prepare(replace(steps, batch=Batch(short, steps.batch.advantages)), name)()


def measure(steps: Steps, name: str) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Numbers of one variant, its gradient and its log-probs."""
    warm_up(steps, name)
    run = prepare(steps, name)
    device = steps.model.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    results = [timed(run, steps.model) for _ in range(steps.args.repeats)]
    seconds, logps = min(results, key=lambda result: result[0])
    share = steps.recompute.num_recomputed / len(steps.recompute.layers)
    numbers = {
        "seconds": seconds,
        "runs": [each for each, _ in results],
        "spread": spread([each for each, _ in results]),
        "tokens_per_second": sum(len(path.ids) for path in steps.batch.paths) / seconds,
        "layers_recomputed": steps.recompute.num_recomputed,
        "mean_logp": float(logps.mean()),
    }
    if not steps.args.reference_pass:
        numbers["tflops"] = executed_tflop(steps, name, share) / seconds
    if device.type == "cuda":
        numbers["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return numbers, gradient(steps.model), logps


def check_kernel(device: torch.device) -> str:
    """Name of the attention that `shared` uses: the kernel's, if it agrees with the reference on
    a small tree."""
    if device.type != "cuda":
        return "sdpa, run by run"
    prompt = np.arange(200)
    paths = [TokenPath(np.concatenate([prompt, np.arange(300) + 1000 * i]), 200) for i in range(3)]
    tree = fold(paths).tree.to(device)
    size = int(tree.bounds[-1][0])
    query, key, value = (
        torch.randn(size, heads, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
        for heads in (8, 2, 2)
    )
    key, value = key[tree.kv_index], value[tree.kv_index]
    try:
        results = []
        for attend in (tree_attention.attend_varlen, tree_attention.attend_run_by_run):
            out = attend(query, key, value, tree, 128**-0.5)
            results.append(
                (
                    out,
                    *torch.autograd.grad(
                        out.float().square().sum(), (query, key, value), retain_graph=True
                    ),
                )
            )
        errors = [
            float((a - b).float().norm() / b.float().norm()) for a, b in zip(*results, strict=True)
        ]
        if max(errors) > 0.02:
            raise RuntimeError(f"relative errors {errors}")
        return "variable-length kernel"
    except (RuntimeError, TypeError, ImportError) as error:
        logger.warning("the variable-length kernel is not used: %s", error)
        tree_attention.attend_varlen = tree_attention.attend_run_by_run
        return f"sdpa, run by run ({error})"


# --- Report ---------------------------------------------------------------------------------------


@dataclass
class Report:
    """Everything measured so far; written after each variant, since the time limit may end the
    run."""

    args: argparse.Namespace
    about: dict[str, object]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_revisions: dict[str, dict[str, float]] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    logps: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(
        self, name: str, numbers: dict[str, Any], grad: torch.Tensor, logps: torch.Tensor
    ) -> None:
        """Note a variant and write the file."""
        self.variants[name], self.gradients[name], self.logps[name] = numbers, grad, logps
        self.write()

    def write(self) -> None:
        """Write the file, if there is to be one."""
        if self.args.out:
            Path(self.args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(self.args.out).write_text(
                json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8"
            )

    def summary(self) -> dict[str, object]:
        """All measurements so far, with ratios of the measured variants."""
        ratios: dict[str, float] = {}
        for other in self.variants.keys() - {"shared", "float32"}:
            if "shared" in self.variants:
                ratios[f"speedup_vs_{other}"] = (
                    self.variants[other]["seconds"] / self.variants["shared"]["seconds"]
                )
        for reference, suffix in (("unshared", ""), ("float32", "_vs_float32")):
            for name in self.gradients.keys() - {reference, "float32"}:
                if reference in self.gradients:
                    key = f"gradient_cosine{suffix}" + ("" if name == "shared" else f"_{name}")
                    ratios[key] = cosine(self.gradients[name], self.gradients[reference])
        if {"shared", "unshared"} <= self.logps.keys():
            difference = (self.logps["shared"] - self.logps["unshared"]).abs()
            ratios["mean_logp_difference"] = float(difference.mean())
        known = {"variants": self.variants, "by_revisions": self.by_revisions}
        return {**ratios, **self.about, **known}

    def table(self) -> str:
        """Rows of variants, then the ratios."""
        columns = (
            "seconds",
            "spread",
            "tokens_per_second",
            "tflops",
            "peak_gib",
            "layers_recomputed",
        )
        rows = [["variant", *columns]]
        for name, numbers in self.variants.items():
            rows.append([name, *(f"{numbers[c]:,.2f}" if c in numbers else "" for c in columns)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        ratios = {key: value for key, value in self.summary().items() if isinstance(value, float)}
        return (
            "\n".join(lines + [f"{key} {value:.5g}" for key, value in sorted(ratios.items())])
            + "\n"
        )


def describe(args: argparse.Namespace, steps: Steps) -> dict[str, object]:
    """Machine, versions, batch and settings."""
    device, paths = steps.model.device, steps.batch.paths
    packs = [fold([paths[i] for i in rows]) for rows in plan(paths, args.tokens_per_forward)]
    cuda = device.type == "cuda"
    return {
        "preset": args.preset,
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name()
        if cuda
        else platform.processor() or platform.machine(),
        "dtype": str(steps.model.dtype).removeprefix("torch."),
        "versions": {"python": platform.python_version(), **versions()},
        "cuts": read_json(CUTS)["source"],
        "repeats": args.repeats,
        "attention": check_kernel(device),
        "attention_of_trl_tree": kernel_name(device),
        "product_tflops": product_tflops(device, steps.model.dtype, 8192 if cuda else 1024),
        "paths": len(paths),
        "raw_tokens": sum(len(path.ids) for path in paths),
        "trained_tokens": steps.batch.num_trained,
        "unique_tokens": sum(packed.input_ids.numel() for packed in packs),
        "forwards": len(packs),
        "tokens_per_forward": args.tokens_per_forward,
        "micro_batch": args.micro_batch,
        "reference_pass": args.reference_pass,
    }


def parse_args() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=DIMENSIONS, default="miniature")
    every = list(EXPECTED_SECONDS)
    parser.add_argument("--variants", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU, else float32"
    )
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument(
        "--group", type=int, default=4, help="originals a prompt; as many revisions"
    )
    parser.add_argument(
        "--micro_batch", type=int, default=4, help="rows of a forward pass of `padded`"
    )
    parser.add_argument(
        "--tokens_per_forward", type=int, default=12288, help="unique tokens of a packed pass"
    )
    parser.add_argument(
        "--reference_pass",
        action="store_true",
        help="KL term, its pass, and TRL's for old log-probs",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed steps of a variant; the fastest counts"
    )
    parser.add_argument(
        "--groups", type=int, nargs="*", default=[], help="numbers of revisions to compare at last"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--time_limit",
        type=float,
        default=600,
        help="seconds since the start; the rest is skipped",
    )
    parser.add_argument("--out", help="JSON file, written after each variant")
    return parser.parse_args()


def run_variants(steps: Steps, report: Report) -> None:
    """Measure the variants for which there is time, judged by the seconds of `shared`, which
    comes first."""
    started = psutil.Process().create_time()
    for name in report.args.variants:
        seconds = report.variants.get("shared", {"seconds": 0})["seconds"]
        expected = EXPECTED_SECONDS[name] * seconds * report.args.repeats
        if time.time() - started + expected > report.args.time_limit:
            logger.warning(
                "%s is skipped: too little is left of %.0f s", name, report.args.time_limit
            )
            continue
        try:
            report.add(name, *measure(steps, name))
        except torch.OutOfMemoryError as error:
            logger.warning("%s is skipped: %s", name, error)
        logger.info("%s: %s", name, report.variants.get(name))


def run_groups(steps: Steps, report: Report) -> None:
    """Seconds of `shared` and `packed` by the revisions of a prompt."""
    for group in report.args.groups:
        args = argparse.Namespace(**{**vars(report.args), "group": group})
        other = replace(steps, batch=make_batch(args, DIMENSIONS[args.preset][0]), args=args)
        seconds = {name: measure(other, name)[0]["seconds"] for name in ("shared", "packed")}
        report.by_revisions[str(group)] = seconds | {
            "speedup": seconds["packed"] / seconds["shared"],
            "tokens": sum(len(path.ids) for path in other.batch.paths),
        }
        logger.info("%d revisions: %s", group, report.by_revisions[str(group)])
    report.write()


def main() -> None:
    """Print the table."""
    args = parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(relativeCreated)d ms  %(message)s", stream=sys.stderr
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    model = make_model(args.preset, device, dtype)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy"))
    add_packed_forward(model.get_base_model())
    recompute = Recompute(model.get_base_model(), "auto", args.tokens_per_forward)
    steps = Steps(model, make_batch(args, DIMENSIONS[args.preset][0]), args, recompute)
    report = Report(args, describe(args, steps))
    logger.info("%s", report.about)
    run_variants(steps, report)
    if dtype != torch.float32 and args.preset != "7b":
        model.float()
        report.add("float32", *measure(steps, "unshared"))
        model.to(dtype)
    run_groups(steps, report)
    sys.stdout.write(report.table())


if __name__ == "__main__":
    main()
