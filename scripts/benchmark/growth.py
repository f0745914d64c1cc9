"""Cost of a REA-RL step as its work grows: seconds, memory, and the share of each part, on real
vLLM servers, in one run and one picture.

    python scripts/benchmark/growth.py                     # the miniature's recipe
    python scripts/benchmark/growth.py --tiny              # as in CI
    # GPUs: 7B dimensions, random weights; servers are started by hand, see end_to_end.py
    python scripts/benchmark/growth.py --preset 7b --model M --servers A B --json one.json
    accelerate launch --num_processes 2 scripts/benchmark/growth.py --preset 7b --model M \
        --servers A B --json two.json --also one.json

Each point is a run of its own: `--lengths` are the most tokens of a response, with --group
responses a prompt; `--groups` are responses a prompt, at the first length. With several training
processes the first one writes; --also draws points of another run next to them, such as those of
one GPU. Shares of the trainer are of a step's seconds, those of a response of its own seconds, for
responses are made side by side.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import psutil
from end_to_end import ROOT, options, run
from serving import add_arguments, model_folder, report, running_servers

from rea_core.json_text import read_json
from rea_rl.rollout.record import STAGES

TRAINER = ("share/rollout_wait", "share/weight_sync", "share/train")
RESPONSE = tuple(f"share/{stage}" for stage in STAGES)
AXES = {"tokens": "tokens of a response, at most", "group": "responses a prompt"}
SIZES = {"miniature": ([100, 200, 400, 800], 4), "7b": ([1000, 2000, 4000, 8000], 4)}


def points(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Length and group of each run."""
    lengths, first = arguments.lengths, arguments.lengths[0]
    return [
        *((length, arguments.group) for length in lengths),
        *((first, group) for group in arguments.groups if group != arguments.group),
    ]


def measure(argv: list[str], length: int, group: int) -> dict[str, Any]:
    """Numbers of one point."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    flags = ["--max_completion_length", str(length), "--num_generations", str(group)]
    flags += ["--max_rollout_lag", "0"]
    numbers = run(argv + flags, (*TRAINER, *RESPONSE, "timing/step"))
    memory = psutil.Process().memory_info().rss
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    return {"tokens": length, "group": group, "memory_gib": memory / 2**30, **numbers}


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Seconds by length and by group, and the shares of the first run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for marker, (name, found) in zip("osD^v", runs.items(), strict=False):
        first = found[0]
        for axis, key, other in ((axes[0][0], "tokens", "group"), (axes[0][1], "group", "tokens")):
            alike = [p for p in found if p[other] == first[other]]
            line = sorted((p[key], p["seconds_per_step"]) for p in alike)
            axis.plot(*zip(*line, strict=True), marker=marker, label=name)
            axis.set(xlabel=AXES[key], ylabel="seconds a step", ylim=(0, None))
    axes[0][0].legend()
    found = next(iter(runs.values()))
    labels = [f"{p['tokens']:g}\n×{p['group']:g}" for p in found]
    titles = "of the trainer's step", "of a response"
    for axis, keys, title in zip(axes[1], (TRAINER, RESPONSE), titles, strict=True):
        below = [0.0] * len(found)
        for hatch, key in zip(("", "//", "..", "xx", "oo", "++"), keys, strict=False):
            heights = [p.get(key, 0.0) for p in found]
            name = key.removeprefix("share/").replace("_", " ")
            axis.bar(labels, heights, bottom=below, label=name, hatch=hatch, edgecolor="white")
            below = [a + b for a, b in zip(below, heights, strict=True)]
        axis.set(xlabel="tokens × responses a prompt", ylabel=f"share {title}", ylim=(0, 1))
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    """Options; sizes by preset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--lengths", type=int, nargs="+", help="most tokens of a response")
    parser.add_argument("--group", type=int, help="responses a prompt while lengths grow")
    parser.add_argument("--groups", type=int, nargs="*", default=[2, 4, 8], help="then these")
    parser.add_argument("--steps", type=int, default=5, help="of each run, at least 3")
    parser.add_argument("--tiny", action="store_true", help="two lengths, two prompts a step")
    parser.add_argument(
        "--reflection_model", default=str(ROOT / "model" / "Miniature-Reflection"), help="served"
    )
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="results of other runs")
    parser.add_argument("--picture", type=Path, default=Path("output/benchmark/growth.png"))
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.lengths, arguments.groups = arguments.lengths or [40, 80], [4]
        arguments.group = arguments.group or 2
    lengths, group = SIZES.get(arguments.preset, SIZES["7b"])
    arguments.lengths = arguments.lengths or lengths
    arguments.group = arguments.group or group
    arguments.completion_tokens = max(arguments.lengths)
    return arguments


def main() -> None:
    """Print the table, write the results and draw them."""
    arguments = parse_arguments()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        policy = model_folder(arguments, Path(folder, "model"))
        reflection = arguments.reflection_model if arguments.preset == "miniature" else policy
        with running_servers({"policy": policy, "reflection": reflection}, arguments) as urls:
            for number, (length, group) in enumerate(points(arguments)):
                place = f"{folder}/{number}"
                argv = options("ReflectRL", arguments, [policy, reflection], urls, place)
                found.append(measure(argv, length, group))
    if os.environ.get("RANK", "0") != "0":
        return
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    table = [["tokens", "responses", "s/step", "GiB", *(k.removeprefix("share/") for k in TRAINER)]]
    for point in found:
        sizes = [f"{point['tokens']:g}", f"{point['group']:g}"]
        numbers = point["seconds_per_step"], point["memory_gib"]
        shares = [f"{point.get(key, 0.0):.2f}" for key in TRAINER]
        table.append([*sizes, *(f"{n:.2f}" for n in numbers), *shares])
    results: dict[str, Any] = {"preset": arguments.preset, "processes": processes, "points": found}
    report("growth", table, results, arguments.json)
    runs = {f"{processes} training": found}
    for path in arguments.also:
        other = read_json(path)
        runs[f"{other['processes']} training, {path.stem}"] = other["points"]
    draw(runs, arguments.picture)


if __name__ == "__main__":
    main()
