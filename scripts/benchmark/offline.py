"""Time and memory of the offline stages as files grow, in one run, with another checkout next to
it.

    python scripts/benchmark/offline.py
    git worktree add ../before 0d7f6b9
    python scripts/benchmark/offline.py --also ../before/src
    # DeepScaleR with four responses a problem: hours on two cores
    python scripts/benchmark/offline.py --responses 161260 \
        --stages score label candidates confirm clean

Responses are synthetic. They have 20,000 characters, two results and an answer; each fifth is
truncated. Every stage is the command that users type, in a process of its own. Its memory is that
of all its processes, shared pages counted once; its CPU seconds are theirs too. `per_1000` in the
JSON file leaves out what a command takes to start: it is the slope from one size to the next.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from serving import MINIATURE, ROOT, report, spread

from rea_core.row_files import Row, write_json

RESPONSES_PER_PROBLEM = 4
LOOK = 0.1  # seconds between two looks at the processes of a stage
WORDS = (
    "so the sum of both terms is then a half times x plus y which gives wait let me see if".split()
)
STAGES = ("score", "label", "candidates", "confirm", "clean", "cut")
HEADER = ["stage", "checkout", "responses", "seconds", "ms each", "CPU ms each", "peak MB"]


@dataclass(frozen=True)
class Cost:
    """Of one stage on one file."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


# by stage, checkout and number of responses, a cost for each repeat
Found = dict[str, dict[str, dict[int, list[Cost]]]]


def paragraphs(rng: random.Random) -> list[str]:
    """Paragraphs of about 150 characters that state no result."""
    return [
        f"{' '.join(rng.choices(WORDS, k=30))} {rng.randrange(1000)}+{rng.randrange(1000)}.\n\n"
        for _ in range(1000)
    ]


def synthetic_rows(responses: int, characters: int) -> Iterator[Row]:
    """Rows of a generation file."""
    rng = random.Random(0)
    known = paragraphs(rng)
    for i in range(responses // RESPONSES_PER_PROBLEM):
        texts = [synthetic_text(rng, known, characters, i) for _ in range(RESPONSES_PER_PROBLEM)]
        made = [
            {"text": text, "num_tokens": characters // 4, "prompt_thinking": "unknown"}
            | {"finish_reason": "stop" if "</think>" in text else "length"}
            for text in texts
        ]
        yield {"id": f"p{i}", "problem": f"{i}+0?", "answer": str(i), "responses": made}


def synthetic_text(rng: random.Random, known: list[str], characters: int, answer: int) -> str:
    """A response; it states its result in the middle of its thinking and at its end."""
    half = rng.choices(known, k=max(characters // 2 // len(known[0]), 1))
    result = f"So the result is {answer}.\n\n"
    thinking = "".join([*half, result, *reversed(half), result])
    return thinking if rng.random() < 0.2 else f"{thinking}</think>\n\n\\boxed{{{answer}}}"


def commands(folder: Path, model: str) -> dict[str, list[str]]:
    """Command line of each stage; all files are in one folder."""
    source, cut = str(folder / "paths.json"), str(folder / "cut.json")
    candidates = str(folder / "candidates.json")
    labels = str(folder / "judge" / "paths_labeling_distill_use_asw.json")
    replies = str(folder / "judge" / "candidates_json.json")
    split = ["--paragraph_tokenizer", model]
    judge = ["miniature.judge", "--model_dir", "judge", "--output_dir", str(folder), "--qaf"]
    label_files = ["--confirmations", replies, "--paths", source]
    return {
        "score": ["generation.math_verify_all", source, "--model_dir", model],
        "label": [*judge, source, "--split", "labeling_distill_use_asw", *split],
        "candidates": ["generation.labeling_distill_utils", labels, "--candidates", candidates],
        "confirm": [*judge, candidates, "--split", "json"],
        "clean": [
            "generation.labeling_distill_utils",
            labels,
            "--clean",
            *label_files,
            "--out",
            cut,
        ]
        + split,
        "cut": ["generation.labeling_to_prefix", source, "--judge_cuts", cut, *split, "--out"]
        + [str(folder / "prefixes.json")],
    }


def run_stage(command: list[str], source: Path, folder: Path) -> Cost:
    """Run a command with the packages of a checkout. Raises RuntimeError with its output if it
    fails."""
    environment = {**os.environ, "PYTHONPATH": str(source), "TQDM_DISABLE": "1"}
    log = folder / "log.txt"
    start, peak, cpu = time.perf_counter(), 0.0, {}
    with log.open("w") as output:
        process = psutil.Popen(
            [sys.executable, "-m", *command],
            env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while process.poll() is None:
            peak = max(peak, sum(_look(process, cpu)))
            time.sleep(LOOK)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{log.read_text()}")
    return Cost(time.perf_counter() - start, sum(cpu.values()), peak)


def _look(process: psutil.Process, cpu: dict[int, float]) -> Iterator[float]:
    """MB of each process of a stage that runs now; its CPU seconds are kept by its id."""
    with suppress(psutil.Error):
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):  # it has just ended
                times = one.cpu_times()
                cpu[one.pid] = times.user + times.system
                yield one.memory_full_info().pss / 2**20


def measure(args: argparse.Namespace, checkouts: dict[str, Path]) -> Found:
    """Costs by stage, checkout and size: a list with one for each repeat."""
    found: Found = {stage: {name: {} for name in checkouts} for stage in args.stages}
    for responses in args.responses * args.repeats:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            write_json(Path(scratch, "paths.json"), synthetic_rows(responses, args.characters))
            for name, source in checkouts.items():
                folder = Path(scratch, name)
                folder.mkdir()
                (folder / "paths.json").symlink_to(Path(scratch, "paths.json"))
                for stage in args.stages:
                    command = commands(folder, args.model)[stage]
                    cost = run_stage(command, source, folder)
                    found[stage][name].setdefault(responses, []).append(cost)
    return found


def medians(costs: Sequence[Cost]) -> Cost:
    """Median of each number."""
    return Cost(*(median(values) for values in zip(*map(astuple, costs), strict=True)))


def table(found: Found) -> Iterator[list[str]]:
    """Rows of medians."""
    for stage, by_checkout in found.items():
        for name, sizes in by_checkout.items():
            for responses, costs in sizes.items():
                cost = medians(costs)
                each = [f"{1e3 * x / responses:.2f}" for x in (cost.seconds, cost.cpu_seconds)]
                size = [str(responses), f"{cost.seconds:.1f}", *each, f"{cost.peak_mb:.0f}"]
                yield [stage, name, *size]


def slopes(sizes: dict[int, list[Cost]]) -> list[dict[str, float]]:
    """What 1,000 more responses cost, from each size to the next."""
    known = [(responses, astuple(medians(costs))) for responses, costs in sorted(sizes.items())]
    return [
        asdict(Cost(*(1000 * (y - x) / (many - few) for x, y in zip(low, high, strict=True))))
        for (few, low), (many, high) in pairwise(known)
    ]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--responses", type=int, nargs="+", default=[400, 800, 1600], help="sizes of the files"
    )
    parser.add_argument("--characters", type=int, default=20_000, help="of a response")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--model", default=str(MINIATURE), help="its tokenizer counts")
    parser.add_argument("--also", type=Path, help="src folder of a checkout to compare with")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each stage and size")
    parser.add_argument("--folder", type=Path, help="place of the files (default: temporary)")
    parser.add_argument("--json", default=None, help="place of the results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_arguments(argv)
    args.model = str(Path(args.model).resolve())
    checkouts = {"this": ROOT / "src"}
    if args.also is not None:
        checkouts["other"] = args.also.resolve()
    found = measure(args, checkouts)
    stages = {
        stage: {
            name: {
                "runs": {size: [asdict(cost) for cost in costs] for size, costs in sizes.items()},
                "spread": {
                    size: spread([cost.cpu_seconds for cost in costs])
                    for size, costs in sizes.items()
                },
                "per_1000": slopes(sizes),
            }
            for name, sizes in by_checkout.items()
        }
        for stage, by_checkout in found.items()
    }
    cores = len(os.sched_getaffinity(0))
    results = {"characters": args.characters, "cores": cores, "stages": stages}
    report("offline", [HEADER, *table(found)], results, args.json)


if __name__ == "__main__":
    main()
