"""Whether training and servers compute right on this machine, to be run once after installing.

    bash scripts/check_gpu.sh          # the first visible GPU, about five minutes
    bash scripts/check_gpu.sh --cpu    # the same on the CPU, in float32

Prints a line for each finding, and exits with code 1 if one of them is wrong. The models are the
embedded miniatures, and one with random weights for NaN gradients: head size 64, lengths of 64
over a multiple of 128, and scores far below 0, as real models have them.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from rea_core.command import add_flags, command
from rea_rl.run.card import package_versions

if TYPE_CHECKING:
    import openai
    import torch
    from peft import PeftModel
    from torch import Tensor

    from rea_rl.packing.prefix_tree import TokenPath

logger = logging.getLogger(__name__)

MODELS = Path(__file__).parents[2] / "model"
POLICY, REFLECTION = str(MODELS / "Miniature-LRM"), str(MODELS / "Miniature-Reflection")
LENGTHS = (64, 192, 320)
LOW_SCORE = 120.0  # below 0; exp(-120) is 0 in float32
LINEAR = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
# least cosine of two gradients, and most mean difference of two log-probs, by bytes of a number
COSINES, DIFFERENCES = {4: 0.9999, 2: 0.97}, {4: 1e-3, 2: 0.1}
SLOPES = (0.5, 1.5)  # of the adapter's effect on a server
PROBLEM = "Compute 3+4-2."
PARAGRAPHS = ["First, go step by step.\n3+4=7", "7-2=5\nSo the result is 5.", "Wait, 3+4=7, 7-2=5."]


@dataclass(frozen=True)
class Finding:
    """A line of the table. `ok` is None if it only informs."""

    what: str
    found: str
    ok: bool | None = None


@dataclass(frozen=True)
class Place:
    """Device and type of the numbers that are computed there."""

    device: torch.device
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize


# --- Machine --------------------------------------------------------------------------------------


def machine(place: Place) -> Iterator[Finding]:
    """Device and versions."""
    import torch

    name = torch.cuda.get_device_name() if place.is_gpu else platform.machine()
    yield Finding("device", f"{name}, {str(place.dtype).removeprefix('torch.')}")
    yield Finding("versions", ", ".join(map(" ".join, package_versions().items())))


# --- NaN gradients --------------------------------------------------------------------------------


def nan_gradients(place: Place) -> Iterator[Finding]:
    """Attention, SFT and DPO on padded rows; for information with cuDNN's attention as well."""
    import torch

    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    checks = {"attention": attention_gradients, "SFT": sft_gradients, "DPO": dpo_gradients}
    try:
        settings = (False, True) if place.is_gpu else (False,)
        for cudnn, (name, gradients) in product(settings, checks.items()):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            bad = [
                f"{length} {side}"
                for length, side in product(LENGTHS, ("left", "right"))
                if not all(each.isfinite().all() for each in gradients(place, length, side))
            ]
            title = f"NaN: {name}, cuDNN's attention {'on' if cudnn else 'off'}"
            total = len(LENGTHS) * 2
            words = f"gradients finite in {total - len(bad)} of {total} cases"
            if bad:
                words += f", not at {', '.join(bad)}"
            if bad and cudnn:
                words += "; leave cudnn_attention off"
            yield Finding(title, words, None if cudnn else not bad)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(allowed)


def _padding(length: int, side: str, device: torch.device) -> Tensor:
    """Mask (4, L) of rows of different lengths; the first is whole."""
    import torch

    real = torch.tensor([length, length - 1, length - 20, length // 2], device=device)
    places = torch.arange(length, device=device)
    return places < real[:, None] if side == "right" else places >= length - real[:, None]


def attention_gradients(place: Place, length: int, side: str) -> list[Tensor]:
    """Of queries, keys and values (4, 14, L, 64), whose scores are about -LOW_SCORE."""
    import torch

    generator = torch.Generator(place.device).manual_seed(0)
    shape = (4, 14, length, 64)
    query, key, value = (
        torch.randn(shape, generator=generator, device=place.device) for _ in range(3)
    )
    query[..., 0] = (LOW_SCORE * 8) ** 0.5
    key[..., 0] = -query[..., 0]
    inputs = [x.to(place.dtype).requires_grad_() for x in (query, key, value)]
    mask = _padding(length, side, place.device)
    square = {"dtype": torch.bool, "device": place.device}
    seen = torch.ones(length, length, **square).tril() & mask[:, None]
    seen |= torch.eye(length, **square)
    out = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=seen[:, None])
    loss = out.float().square() * mask[:, None, :, None]
    loss.sum().backward()
    return [x.grad for x in inputs]


def _random_model(place: Place) -> PeftModel:
    """A decoder with head size 64 and an adapter; its scores are about -LOW_SCORE."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 256}
    torch.manual_seed(0)
    config = Qwen2Config(**sizes, **heads, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for layer in model.model.layers:  # of the slowest rotation, so that it holds at any distance
        size = (LOW_SCORE * 8) ** 0.5
        layer.self_attn.q_proj.bias.data.view(-1, 64)[:, 31] = size
        layer.self_attn.k_proj.bias.data.view(-1, 64)[:, 31] = -size
    model = model.to(place.device, place.dtype)
    return get_peft_model(model, LoraConfig(r=8, target_modules=LINEAR, task_type="CAUSAL_LM"))


def _row_logps(model: PeftModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probs (B, L - 1) of the tokens of padded rows but the first."""
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    log_probs = logits[:, :-1].float().log_softmax(-1)
    return log_probs.gather(2, ids[:, 1:, None])[..., 0]


def _sums(model: PeftModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Sums (B,) of those that are no padding."""
    real = mask[:, 1:] & mask[:, :-1]
    return (_row_logps(model, ids, mask) * real).sum(dim=1)


def _tokens(place: Place, length: int) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, 256, (4, length), generator=generator).to(place.device)


def sft_gradients(place: Place, length: int, side: str) -> list[Tensor]:
    """Of an adapter, for the mean log-prob of padded rows."""
    model, mask = _random_model(place), _padding(length, side, place.device)
    logps = _sums(model, _tokens(place, length), mask)
    (-logps.sum() / mask.sum()).backward()
    return _gradients(model)


def dpo_gradients(place: Place, length: int, side: str) -> list[Tensor]:
    """Of an adapter, for the preference of the first two of padded rows over the others."""
    import torch
    import torch.nn.functional as F

    model, mask = _random_model(place), _padding(length, side, place.device)
    ids = _tokens(place, length)
    with torch.no_grad(), model.disable_adapter():
        reference = _sums(model, ids, mask)
    gain = 0.1 * (_sums(model, ids, mask) - reference)
    loss = -F.logsigmoid(gain[:2] - gain[2:]).mean()
    loss.backward()
    return _gradients(model)


def _gradients(model: PeftModel) -> list[Tensor]:
    """Of all trained weights; 0 for one that has no part in the loss."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p.detach() * 0 if p.grad is None else p.grad.detach().clone() for p in trained]


# --- Training step --------------------------------------------------------------------------------


def training_step(place: Place) -> Iterator[Finding]:
    """Log-probs and gradients of packed rows against padded ones; then each part of the packed
    step, which is added to those before it."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from rea_core.models import load_tokenizer
    from rea_rl.packing.fork_check import make_fork
    from rea_rl.packing.fused_lora import fuse_layers
    from rea_rl.packing.prefix_tree import add_packed_forward
    from rea_rl.packing.recompute import Recompute

    model = policy(place)
    paths = make_fork(load_tokenizer(POLICY))
    base = model.get_base_model()
    expected = _step(model, lambda: padded_logps(model, paths))
    add_fused_lm_head(base)  # as TRL's trainer does
    add_packed_forward(base)
    parts: dict[str, Callable[[], Any]] = {
        "packed against padded": lambda: None,
        "fused_lora against plain layers": lambda: fuse_layers(model),
        "recomputation against none": lambda: Recompute(base, "all", None),
    }
    for name, switch_on in parts.items():
        switch_on()
        found = _step(model, lambda: packed_logps(model, paths))
        difference = float((found[0] - expected[0]).abs().mean())
        cosine = float(torch.cosine_similarity(found[1], expected[1], dim=0))
        ok = difference < DIFFERENCES[place.size] and cosine > COSINES[place.size]
        words = f"log-probs differ by {difference:.1e}, gradients have a cosine of {cosine:.6f}"
        yield Finding(f"step: {name}", words, ok)
        if name.startswith("packed"):
            expected = found


def policy(place: Place) -> PeftModel:
    """The miniature with an adapter that has an effect."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=place.dtype).to(place.device)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def _step(model: PeftModel, logps: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probs (M,) of trained tokens, and all gradients (P,) of their weighted sum."""
    import torch

    model.zero_grad()
    found = logps()
    weights = torch.linspace(-1, 1, len(found), device=found.device)
    (found * weights).sum().backward()
    gradients = torch.cat([each.flatten().double() for each in _gradients(model)])
    return found.detach(), gradients


def padded_logps(model: PeftModel, paths: list[TokenPath]) -> Tensor:
    """As TRL computes them: prompts padded on the left, completions on the right."""
    import torch
    from trl.trainer.utils import pad

    ends = [path.num_prompt for path in paths]

    def padded(rows: list[Tensor]) -> Tensor:
        parts = (row.tensor_split([end]) for row, end in zip(rows, ends, strict=True))
        prompts, completions = zip(*parts, strict=True)
        return torch.cat([pad(prompts, padding_side="left"), pad(completions)], dim=1)

    rows = [torch.from_numpy(path.ids).to(model.device) for path in paths]
    ids, mask = padded(rows), padded([torch.ones_like(row) for row in rows])
    trained = mask[:, max(ends) :].bool()
    return _row_logps(model, ids, mask)[:, max(ends) - 1 :][trained]


def packed_logps(model: PeftModel, paths: list[TokenPath]) -> Tensor:
    """The same in a row of shared prefixes."""
    from rea_rl.packing import prefix_tree

    packed = prefix_tree.fold(paths).to(model.device)
    return prefix_tree.packed_logps(model, packed)[0][packed.token_index]


# --- Servers --------------------------------------------------------------------------------------


def servers(place: Place, given: list[str] | None) -> Iterator[Finding]:
    """Both servers: log-probs next to the trainer's, two adapters in turn, and labels."""
    from rea_core.clients import openai_client
    from rea_core.models import load_tokenizer
    from rea_rl.rollout.weight_sync import AdapterSync

    tokenizer, model = load_tokenizer(POLICY), policy(place)
    ids = tokenizer.encode(PROBLEM + "\n" + "\n\n".join(PARAGRAPHS), add_special_tokens=False)
    with running(place, given) as (urls, seconds), tempfile.TemporaryDirectory() as folder:
        if seconds:
            yield Finding("servers: start", f"both ready after {seconds:.0f} s", True)
        client = openai_client(urls[0], timeout=120, max_retries=0)
        yield from _adapters(model, client, ids, place, AdapterSync(urls[0], folder))
        yield _labels(openai_client(urls[1], timeout=120, max_retries=0))


def _adapters(
    model: PeftModel, client: openai.OpenAI, ids: list[int], place: Place, sync: Any
) -> Iterator[Finding]:
    from rea_rl.rollout.probe import served_logps, trainer_logps

    with model.disable_adapter():
        without = trainer_logps(model, ids)
    served = served_logps(client, POLICY, ids)
    difference = float((served - without).abs().mean())
    ok = difference < DIFFERENCES[2]  # a server computes in 16 bits
    yield Finding("servers: log-probs", f"differ by {difference:.1e} from the trainer's", ok)
    for step in (0, 1):
        change = trainer_logps(model, ids) - without
        start = time.perf_counter()
        name = sync.publish(model, step)
        seconds = time.perf_counter() - start
        told = served_logps(client, name, ids) - served
        slope = float(told @ change / (change @ change))
        size = float(change.square().mean().sqrt())
        words = f"in {seconds:.2f} s; {slope:.2f} of its effect of {size:.1e} a token"
        yield Finding(f"servers: adapter {step + 1}", words, SLOPES[0] < slope < SLOPES[1])
        for key, parameter in model.named_parameters():  # another one of the same size
            if "lora_B" in key:
                parameter.data.neg_()
    client.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=str)


def _labels(client: openai.OpenAI) -> Finding:
    from generation.cuts import result_probabilities
    from generation.prompts import REFLECTION_PREFILL, reflection_messages
    from generation.rendering import DEFAULT_FORMAT, encode_continuation, encode_text
    from rea_core.models import load_tokenizer

    tokenizer = load_tokenizer(REFLECTION)
    prompt = DEFAULT_FORMAT.text(reflection_messages(PROBLEM, PARAGRAPHS), tokenizer)
    ids = encode_text(prompt, tokenizer) + encode_continuation(REFLECTION_PREFILL, tokenizer)
    reply = client.completions.create(
        model=REFLECTION, prompt=ids, max_tokens=64, temperature=0.0, logprobs=5
    )
    steps = [
        sorted(((logprob, token) for token, logprob in step.items()), reverse=True)
        for step in reply.choices[0].logprobs.top_logprobs
    ]
    found = result_probabilities(steps)
    words = f"{len(found)} of {len(PARAGRAPHS)} paragraphs, P(Result) "
    words += ", ".join(f"{p:.2f}" for p in found)
    return Finding("servers: labels", words, len(found) == len(PARAGRAPHS))


@contextmanager
def running(place: Place, given: list[str] | None) -> Iterator[tuple[list[str], float]]:
    """Addresses of both servers, and seconds until they were ready; given ones run already."""
    from rea_rl.study.places import MEMORY_SHARE
    from rea_rl.vllm_server import ServerConfig, VLLMServer

    if given:
        yield given, 0.0
        return
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as logs:
        settings: dict[str, Any] = {"device": "cuda" if place.is_gpu else "cpu", "gpu": gpu}
        settings |= {"log_dir": logs, "compile": False, "kv_cache_gib": 1}
        # With caches of a fixed size no server measures the memory, so they may start together.
        settings |= {"gpu_memory_utilization": MEMORY_SHARE} if place.is_gpu else {}
        started = [
            VLLMServer(ServerConfig(model, _free_port(), role, **settings))
            for role, model in (("policy", POLICY), ("reflection", REFLECTION))
        ]
        try:
            for server in started:
                server.start()
            for server in started:
                server.wait_ready()
            yield [server.base_url for server in started], time.perf_counter() - start
        finally:
            for server in started:
                server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- Command --------------------------------------------------------------------------------------


def findings(place: Place, given: list[str] | None) -> Iterator[Finding]:
    """All of them, as they are found. A part that fails is one."""
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "machine": lambda: machine(place),
        "NaN": lambda: nan_gradients(place),
        "step": lambda: training_step(place),
        "servers": lambda: servers(place, given),
    }
    for name, part in parts.items():
        try:
            yield from part()
        except Exception as error:  # the other parts are checked all the same
            logger.debug("%s", name, exc_info=error)
            words = " ".join(str(error).split())[:300]
            yield Finding(name, f"{type(error).__name__}: {words}", False)


def table(found: list[Finding]) -> str:
    """A line for each finding, and the result."""
    verdicts = {True: "ok", False: "WRONG", None: ""}
    rows = [(each.what, verdicts[each.ok], each.found) for each in found]
    wrong = [each.what for each in found if each.ok is False]
    end = f"wrong: {'; '.join(wrong)}" if wrong else "all is well"
    return f"{tabulate(rows, ('check', '', 'found'), tablefmt='simple')}\n\n{end}\n"


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Check training and servers on this machine.")
    add_flags(parser, cpu=(False, "on the CPU, in float32"))
    parser.add_argument(
        "--servers", nargs=2, metavar="URL", help="policy and reflection server that run already"
    )
    args = parser.parse_args(argv)
    import torch

    if not args.cpu and not torch.cuda.is_available():
        raise ValueError("no GPU is visible to torch; check the CPU with --cpu")
    place = Place(torch.device("cuda"), torch.bfloat16)
    if args.cpu:
        place = Place(torch.device("cpu"), torch.float32)
    found = []
    for each in findings(place, args.servers):
        logger.info("%s: %s", each.what, each.found)
        found.append(each)
    sys.stdout.write(table(found))
    if any(each.ok is False for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
