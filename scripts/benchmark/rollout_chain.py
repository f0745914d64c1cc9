"""Compare the rollout chain with the same work done stage by stage, on real vLLM servers, in one
run.

    python scripts/benchmark/rollout_chain.py
    # a GPU: 7B dimensions, random weights
    python scripts/benchmark/rollout_chain.py --preset 7b

Lengths are drawn once and used by all: responses log-normal around the preset's median. Cuts, and
labels read until they are decided, are those of a trained detector (detector_cuts.json). Every
request is as long as the plan says (end tokens are ignored), and goes through the trainer's own
client. Per prompt:

    plain GRPO, G responses the original responses alone
    plain GRPO, 2G responses    as many trained rows as REA-RL, without revision
    barriers                G responses; then all labels (whole replies); then all answers
    chain                   each response by itself; the reply is left once the cut is decided
    chain, waves            the same, but --label_wave responses labelled, then finished, at a time

`revision_overhead` in the JSON file is what labels and revisions cost, as a fraction of plain GRPO
with 2G responses: the faster of both chains against it. With one GPU, start both servers on it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serving import PRESETS, Preset, add_arguments, model_folder, report, running_servers, spread

from rea_core.json_text import read_json
from rea_rl.rollout.endpoint import Endpoint
from rea_rl.rollout.labeller import TOP_LOGPROBS
from rea_rl.rollout.replies import Completion
from rea_rl.rollout.stage_batching import Waves

IDS = range(20, 400)  # ordinary ids of all presets
CUTS = Path(__file__).with_name("detector_cuts.json")


@dataclass(frozen=True)
class Plan:
    """Lengths of one response, in tokens."""

    prompt: int
    sample: int
    kept: int
    labels: int  # of a whole reply
    labels_read: int  # of them, until the cut is decided
    finish: int


def draw_plans(preset: Preset, group: int, seed: int, label_tokens: int = 7) -> list[Plan]:
    """A plan for each response of the batch, with so many tokens a label."""
    rng = random.Random(seed)
    shares = read_json(CUTS)["shares"]
    plans = []
    for _ in range(preset.prompts * group):
        sample = int(
            min(max(rng.lognormvariate(0, 0.5) * preset.median_tokens, 20), preset.max_tokens)
        )
        kept, read = rng.choice(shares)
        num_labels = 1 + sample // preset.paragraph_tokens
        labels = label_tokens * num_labels
        labels_read = label_tokens * max(round(num_labels * read), 1)
        lengths = sample, int(sample * kept), labels, labels_read
        plans.append(Plan(preset.prompt_tokens, *lengths, preset.finish_tokens))
    return plans


class Work:
    """The three requests of a response. `cached` collects (cached, all) prompt tokens of the
    finishing ones."""

    def __init__(self, policy: Endpoint, reflection: Endpoint, model: str, seed: int):
        self.policy, self.reflection, self.model, self.rng = (
            policy,
            reflection,
            model,
            random.Random(seed),
        )
        self.cached: list[tuple[int, int]] = []

    def prompt(self, length: int) -> list[int]:
        return self.rng.choices(IDS, k=length)

    async def sample(self, prompt: list[int], plan: Plan) -> list[int]:
        return (await self._complete(prompt, plan.sample)).token_ids

    async def label(self, plan: Plan, until_decided: bool) -> None:
        body = {"max_tokens": plan.labels, "temperature": 0.0, "logprobs": TOP_LOGPROBS}
        prompt = self.prompt(plan.prompt + plan.sample)
        reply = self.reflection.stream(self.model, prompt, {"ignore_eos": True}, **body)
        read = 0
        async with aclosing(reply):
            async for steps in reply:
                read += len(steps)
                if until_decided and read >= plan.labels_read:
                    break

    async def finish(self, prompt: list[int], sampled: list[int], plan: Plan) -> None:
        prompt = prompt + sampled[: plan.kept]
        cached = (await self._complete(prompt, plan.finish)).num_cached
        self.cached.append((cached or 0, len(prompt)))

    async def _complete(self, prompt: list[int], tokens: int) -> Completion:
        body = {"max_tokens": tokens, "temperature": 1.0, "logprobs": 0}
        return await self.policy.complete(self.model, prompt, {"ignore_eos": True}, **body)


async def plain(work: Work, plans: list[Plan]) -> None:
    """Original responses only."""
    await asyncio.gather(*(work.sample(work.prompt(plan.prompt), plan) for plan in plans))


async def barriers(work: Work, plans: list[Plan]) -> None:
    """Each stage waits for the slowest response of the one before."""
    prompts = [work.prompt(plan.prompt) for plan in plans]
    sampled = await asyncio.gather(
        *(work.sample(*path) for path in zip(prompts, plans, strict=True))
    )
    await asyncio.gather(*(work.label(plan, until_decided=False) for plan in plans))
    await asyncio.gather(
        *(work.finish(*path) for path in zip(prompts, sampled, plans, strict=True))
    )


async def chain(work: Work, plans: list[Plan], label_wave: int = 1) -> None:
    """No response waits for another, but for its wave."""
    waves = Waves(label_wave, len(plans))

    async def path(plan: Plan) -> None:
        prompt = work.prompt(plan.prompt)
        sampled = await work.sample(prompt, plan)
        await waves.turn("label")
        await work.label(plan, until_decided=True)
        await waves.turn("finish")
        await work.finish(prompt, sampled, plan)

    await asyncio.gather(*map(path, plans))


async def measure(
    urls: list[str], model: str, preset: Preset, args: argparse.Namespace
) -> dict[str, Any]:
    """Best seconds of each way; share of the chain's finishing prompts that was cached, of label
    tokens not read."""
    settings = SimpleNamespace(
        max_concurrent_requests=256, request_timeout=1800.0, request_retries=2, server_deadline=60.0
    )
    policy, reflection = (Endpoint("server", url, settings) for url in urls)
    plans = draw_plans(preset, args.group, 0, args.label_tokens)
    twice = 2 * plans
    ways: dict[str, tuple[Callable[[Work, list[Plan]], Awaitable[None]], list[Plan]]] = {
        "plain, G": (plain, plans), "plain, 2G": (plain, twice), "barriers": (barriers, plans),
        "chain": (chain, plans),
        "chain, waves": (partial(chain, label_wave=args.label_wave), plans),
    }  # fmt: skip
    await barriers(Work(policy, reflection, model, seed=-1), plans[:4])  # first requests are slow
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.repeats):
        for number, (name, (way, paths)) in enumerate(ways.items()):
            # prompts that no cache has
            work = Work(policy, reflection, model, seed=10 * repeat + number)
            start = time.perf_counter()
            await way(work, paths)
            seconds[name].append(time.perf_counter() - start)
    await policy.close()
    await reflection.close()
    cached, prompts = map(sum, zip(*work.cached, strict=True))
    read, whole = sum(plan.labels_read for plan in plans), sum(plan.labels for plan in plans)
    return {
        "seconds": {name: min(times) for name, times in seconds.items()},
        "runs": seconds,
        "spread": {name: spread(times) for name, times in seconds.items()},
        "cached_prompt": cached / prompts,
        "label_tokens_saved": 1 - read / whole,
    }


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--prompts", type=int, default=None, help="prompts of the batch (default: the preset's)"
    )
    parser.add_argument(
        "--median_tokens",
        type=int,
        default=None,
        help="of a sampled response (default: the preset's)",
    )
    parser.add_argument(
        "--max_tokens", type=int, default=None, help="of a sampled response (default: the preset's)"
    )
    parser.add_argument("--group", type=int, default=4, help="sampled responses of a prompt, G")
    parser.add_argument(
        "--label_tokens", type=int, default=7, help="tokens of a label; 1: compact replies"
    )
    parser.add_argument(
        "--label_wave",
        type=int,
        default=64,
        help="responses that wait for each other, in the last way",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="times that each way is measured; the best counts"
    )
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    given = {key: getattr(arguments, key) for key in ("prompts", "median_tokens", "max_tokens")}
    preset = dataclasses.replace(
        preset, **{key: value for key, value in given.items() if value is not None}
    )
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(arguments, Path(folder))
        with running_servers({"policy": model, "reflection": model}, arguments) as urls:
            results = asyncio.run(measure(urls, model, preset, arguments))
    seconds = results["seconds"]
    table = [["rollouts", "seconds", "spread", "of 2G plain", "of barriers"]]
    for name in seconds:
        ratios = [f"{seconds[name] / seconds[of]:.2f}" for of in ("plain, 2G", "barriers")]
        table.append([name, f"{seconds[name]:.2f}", f"{results['spread'][name]:.1%}", *ratios])
    sizes = {key: getattr(preset, key) for key in given}
    results |= {
        "preset": arguments.preset,
        **sizes,
        "group": arguments.group,
        "repeats": arguments.repeats,
        "label_wave": arguments.label_wave,
        "label_tokens": arguments.label_tokens,
    }
    results["chain_of_plain_2G"] = seconds["chain"] / seconds["plain, 2G"]
    results["chain_waves_of_plain_2G"] = seconds["chain, waves"] / seconds["plain, 2G"]
    results["revision_overhead"] = (
        min(seconds["chain"], seconds["chain, waves"]) / seconds["plain, 2G"] - 1
    )
    results["cuts"] = read_json(CUTS)["source"]
    results["barriers_of_chain"] = seconds["barriers"] / seconds["chain"]
    report("rollout_chain", table, results, arguments.json)


if __name__ == "__main__":
    main()
