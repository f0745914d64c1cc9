"""Build the miniature from a seed: problems, tokenizer, the reasoning model and the base of the
reflection model.

python -m miniature.build --out model --problems dataset/miniature --minutes 5            # on a GPU
# on two CPU cores: a weaker model
python -m miniature.build --out /tmp/weak --problems /tmp/weak --minutes 30
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING

from miniature.world import LEVELS, Problem, make_problem
from rea_core.checks import check_numbers
from rea_core.command import add_flags, command
from rea_core.json_text import read_json
from rea_core.models import resolve_device
from rea_core.ownership import own_output_folder
from rea_core.row_files import write_json

if TYPE_CHECKING:
    from miniature.train import Schedule

logger = logging.getLogger("miniature.build")

# Problems, and their levels in turn. Reinforcement learning has its own: easy ones, whose responses
# can be shortened for nothing, and hard ones, where that has to stop.
SPLITS = {
    "train": (2000, LEVELS),
    "validation": (300, LEVELS),
    "test": (1000, LEVELS),
    "train_rl": (1000, (1, 5, 2, 4, 1, 5, 2, 3, 5, 1, 2, 5, 4, 1, 5, 2, 3, 5, 4, 5)),
}
INSTRUCT_SHARE = 0.2  # of the training time


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Command line of the build."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_flags(
        parser,
        out=(Path("model"), "folder for Miniature-LRM and Miniature-Instruct"),
        problems=(Path("dataset/miniature"), "folder for the problem files"),
        minutes=(120.0, "training time of both models together"),
        seed=(0, "of problems and weights"),
        workers=(max(1, (os.cpu_count() or 2) - 2), "processes that draw training data"),
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto: a GPU if there is one",
    )
    parser.add_argument(
        "--tokens-per-batch",
        type=int,
        default=24_576,
        help="tokens a training step, padding included",
    )
    parser.add_argument(
        "--only-problems", action="store_true", help="write the problem files and stop"
    )
    parser.add_argument(
        "--only-instruct",
        action="store_true",
        help="keep the LRM in --out; train Miniature-Instruct from it",
    )
    return parser.parse_args(argv)


def check_arguments(arguments: Namespace) -> None:
    """Raise ValueError for numbers out of range, bad outputs, and a missing model to start from."""
    check_numbers(vars(arguments), positive=("minutes", "workers", "tokens_per_batch"))
    own_output_folder(arguments.out, "out")
    own_output_folder(arguments.problems, "problems")
    if arguments.only_instruct and not (arguments.out / "Miniature-LRM" / "figures.json").is_file():
        raise ValueError(
            f"only-instruct: {arguments.out} has no Miniature-LRM with its figures.json; build "
            "that first"
        )


def draw_splits(seed: int) -> dict[str, list[Problem]]:
    """Problems for every split; no question occurs twice."""
    rng, seen, splits = random.Random(seed + 7), set(), {}
    for name, (size, levels) in SPLITS.items():
        splits[name] = []
        while len(splits[name]) < size:
            problem = make_problem(levels[len(splits[name]) % len(levels)], rng)
            if problem.question not in seen:
                seen.add(problem.question)
                splits[name].append(problem)
    return splits


def write_problems(splits: dict[str, list[Problem]], folder: Path) -> None:
    """Write `<split>.json` and SHA256SUMS."""
    sums = []
    for name, problems in splits.items():
        rows = [
            {"id": f"{name}-{i}", "problem": p.question, "answer": str(p.answer), "level": p.level}
            for i, p in enumerate(problems)
        ]
        write_json(path := folder / f"{name}.json", rows)
        sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def schedule_of(arguments: Namespace, share: float, learning_rate: float) -> Schedule:
    """Training time of one of the two models."""
    from miniature.train import Schedule

    seconds = 60 * arguments.minutes * share
    return Schedule(
        seconds,
        learning_rate,
        tokens_per_batch=arguments.tokens_per_batch,
        num_workers=arguments.workers,
    )


def build_lrm(arguments: Namespace, problems: list[Problem]) -> dict:
    """Train and save `Miniature-LRM`; returns its figures on `problems`."""
    import torch

    from miniature import figures, train
    from miniature.tokenizer import build_tokenizer

    device, tokenizer = resolve_device(arguments.device), build_tokenizer()
    model = train.new_model(tokenizer, arguments.seed)
    report: dict = {"parameters": model.num_parameters(), "seed": arguments.seed, "device": device}
    schedule = schedule_of(arguments, 1 - INSTRUCT_SHARE, 2e-3)
    report["training"] = train.train(
        model, tokenizer, train.draw_trace, schedule, arguments.seed, device
    )
    save(model, tokenizer, arguments.out / "Miniature-LRM")
    model.to(torch.bfloat16 if device == "cuda" else torch.float32).eval()
    paths = figures.sample_paths(model, tokenizer, problems)
    report["levels"] = figures.by_level(paths, tokenizer)
    report["cuts"] = figures.cut_table(model, tokenizer, paths, arguments.seed)
    return report


def build_instruct(arguments: Namespace) -> dict:
    """Train `Miniature-Instruct` from the LRM in `--out` and save it; figures of the training."""
    import torch
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    from miniature import train
    from miniature.tokenizer import INSTRUCT_TEMPLATE

    tokenizer = AutoTokenizer.from_pretrained(arguments.out / "Miniature-LRM", padding_side="left")
    model = Qwen2ForCausalLM.from_pretrained(arguments.out / "Miniature-LRM", dtype=torch.float32)
    schedule = schedule_of(arguments, INSTRUCT_SHARE, 1e-3)
    report = train.train(
        model,
        tokenizer,
        train.draw_dialogue,
        schedule,
        arguments.seed + 1,
        resolve_device(arguments.device),
    )
    tokenizer.chat_template = INSTRUCT_TEMPLATE
    save(model, tokenizer, arguments.out / "Miniature-Instruct")
    return report


def save(model, tokenizer, folder: Path) -> None:
    """Save a model in bfloat16, the precision it is served in."""
    import copy

    import torch

    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments."""
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    splits = draw_splits(arguments.seed)
    write_problems(splits, arguments.problems)
    if arguments.only_problems:
        return
    figures_file = arguments.out / "Miniature-LRM" / "figures.json"
    report = (
        read_json(figures_file) if arguments.only_instruct else build_lrm(arguments, splits["test"])
    )
    report["instruct_training"] = build_instruct(arguments)
    write_json(figures_file, report)
    logger.info("%s", json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
