"""Data of the offline baselines from shortened paths: SFT rows and preference pairs.

    python -m generation.sft_data FINISHED --paths PATHS --sft_out dataset/labeling/SFT.json --rpo_out dataset/labeling/RPO.json

FINISHED is what split `math_cot` wrote for cut paths (`labeling_distill_utils --clean`), PATHS the file they come from.
A shortened path counts if it was really cut, ended by itself, is shorter than its original, and its answer is right.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from generation.labeling_distill_utils import read_paths
from generation.prompts import MATH_COT, format_problem
from generation.rendering import answer_of
from generation.utils import Row, check_columns, check_numbers, check_output, read_generations, write_json
from rea_rl.utils import setup_logging

logger = logging.getLogger(__name__)


def shortened_paths(
    rows: Sequence[Row], correct: Sequence[bool], originals: dict[str, Row], max_per_problem: int
) -> Iterator[tuple[Row, Row, Row]]:
    """(row, shortened response, original response) of the paths that count, in order, at most so many a problem.

    Args:
        rows: finished rows, one response each.
        correct: one verdict per row.
        originals: the paths' own responses by path id.
        max_per_problem: further paths of a problem are left out.
    """
    taken: Counter[str] = Counter()
    for row, is_correct in zip(rows, correct, strict=True):
        shortened, original = row["responses"][0], originals[row["id"]]
        is_shorter = row["cut"] is not None and shortened["num_tokens"] < original["num_tokens"]
        ended = shortened["finish_reason"] == "stop"
        if is_correct and is_shorter and ended and taken[row["problem_id"]] < max_per_problem:
            taken[row["problem_id"]] += 1
            yield row, shortened, original


def training_rows(paths: Sequence[tuple[Row, Row, Row]], prompt_template: str) -> tuple[list[Row], list[Row]]:
    """(SFT rows, preference pairs): the shortened path as completion, and chosen over the original."""
    sft, pairs = [], []
    for row, shortened, original in paths:
        prompt = [{"role": "user", "content": format_problem(row["problem"], prompt_template)}]
        chosen = [{"role": "assistant", "content": shortened["text"]}]
        rejected = [{"role": "assistant", "content": original["text"]}]
        sft.append({"prompt": prompt, "completion": chosen})
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return sft, pairs


def run(args: argparse.Namespace) -> None:
    """Verify the shortened paths and write both files."""
    from generation.math_verify import VerifierPool

    format_problem("", args.prompt_template)
    check_numbers(vars(args), positive=("max_per_problem", "num_workers", "timeout"))
    check_output(args.sft_out, "sft_out", (args.finished, args.paths))
    check_output(args.rpo_out, "rpo_out", (args.finished, args.paths, args.sft_out))
    rows = read_generations(args.finished)
    check_columns(rows, ("cut", "problem_id"), args.finished, "finish a file of labeling_distill_utils --clean")
    originals = read_paths(args.paths)
    if unknown := [row["id"] for row in rows if row["id"] not in originals]:
        raise ValueError(f"{args.finished}: path {unknown[0]} is not in {args.paths}; give the file that was cut")
    with VerifierPool(args.num_workers, timeout=args.timeout) as pool:
        verdicts = [pool.submit(row["answer"], answer_of(row["responses"][0])) for row in rows]
        correct = [verdict.result() for verdict in verdicts]
    paths = list(shortened_paths(rows, correct, originals, args.max_per_problem))
    if not paths:
        raise ValueError(f"{args.finished}: none of its {len(rows)} paths is cut, shorter than before and right")
    sft, pairs = training_rows(paths, args.prompt_template)
    for file, data in ((args.sft_out, sft), (args.rpo_out, pairs)):
        write_json(file, data)
        logger.info("wrote %s: %d of %d paths", file, len(data), len(rows))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="SFT rows and preference pairs from shortened paths.")
    parser.add_argument("finished", type=Path, help="finished file of labeling_distill_utils --clean")
    parser.add_argument("--paths", type=Path, required=True, help="generation file of the original paths")
    parser.add_argument("--sft_out", type=Path, default=Path("dataset/labeling/SFT.json"), help="SFT rows")
    parser.add_argument("--rpo_out", type=Path, default=Path("dataset/labeling/RPO.json"), help="preference pairs")
    parser.add_argument("--max_per_problem", type=int, default=4, help="paths of one problem at most")
    parser.add_argument("--prompt_template", default=MATH_COT, help="as in the training recipe")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that compare answers")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds before an answer counts as wrong")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    setup_logging()
    try:
        run(parse_arguments(argv))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
