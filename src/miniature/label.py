"""Sampled responses to the reflection model's training file in one go, with the oracle as the
judge.

    python -m miniature.label output/Miniature-LRM/train_rl_math_cot.json \
        --out output/miniature/reflection_training.json

The stages of the large judge one after the other: `miniature.judge`, candidates, `miniature.judge`,
`--clean`. Their files are left next to OUT.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from generation.arguments import GenerateArguments
from generation.generate import generate
from generation.labeling_distill_utils import main as labels_command
from miniature.judge import respond
from rea_core.checks import check_output
from rea_core.command import setup_logging


def label(file: str, out: Path, paragraphs: dict[str, str | int]) -> None:
    """Judge the responses of a generation file twice and write the training examples to `out`."""
    work = {"model_dir": "oracle", "output_dir": str(out.parent)}
    labels = generate(
        GenerateArguments(qaf=file, split="labeling_distill_use_asw", **work, **paragraphs), respond
    )
    candidates = labels.with_name(f"{labels.stem}_candidates.json")
    labels_command([str(labels), "--candidates", str(candidates)])
    confirmations = generate(GenerateArguments(qaf=str(candidates), split="json", **work), respond)
    flags = [part for key, value in paragraphs.items() for part in (f"--{key}", str(value))]
    cuts = labels.with_name(f"{labels.stem}_cuts.json")
    files = (
        "--confirmations",
        str(confirmations),
        "--paths",
        file,
        "--out",
        str(cuts),
        "--train_file",
        str(out),
    )
    labels_command([str(labels), "--clean", *files, *flags])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Label the miniature's responses with the oracle judge."
    )
    parser.add_argument("file", help="generation file of miniature problems")
    parser.add_argument(
        "--out", type=Path, required=True, help="training file of the reflection model"
    )
    parser.add_argument(
        "--model_dir",
        default="model/Miniature-LRM",
        help="model whose tokenizer counts paragraph tokens",
    )
    parser.add_argument(
        "--paragraph_min_tokens", type=int, default=1, help="as in the training recipe"
    )
    parser.add_argument(
        "--paragraph_max_tokens", type=int, default=128, help="as in the training recipe"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    setup_logging()
    args = parse_arguments(argv)
    paragraphs = {
        "paragraph_tokenizer": args.model_dir,
        "paragraph_min_tokens": args.paragraph_min_tokens,
        "paragraph_max_tokens": args.paragraph_max_tokens,
    }
    try:
        check_output(args.out, "out", (args.file,))
        label(args.file, args.out, paragraphs)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
