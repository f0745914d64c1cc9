"""The quickstart's last stage: the table, the picture and `summary.json` from the scores of the
base and the trained model.

    python -m miniature.report --base BASE.scores.json --trained TRAINED.scores.json \
        --run output/miniature/ReflectRL \
        --out output/quickstart --seconds install=61 sample=70
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from generation.evaluation.plots import draw, read_log
from generation.math_verify_all import read_scores, table
from generation.provenance import check_all_comparable, known_parts
from generation.scoring import ALL
from miniature.world import LEVELS
from rea_core.command import Needed, add_flags, command
from rea_core.ownership import own_output_folder
from rea_core.row_files import write_json

logger = logging.getLogger(__name__)

HARDEST = f"level {max(LEVELS)}"


def summary(scores: dict[str, Any]) -> dict[str, float | None]:
    """The figures of one model: accuracy and corrected mistakes as shares of its responses, tokens
    a response.
    """
    overall = scores["groups"][ALL]
    return {
        "accuracy": overall["accuracy"]["value"],
        "tokens": overall["tokens"]["value"],
        "tr": overall["tr"]["value"] if "tr" in overall else 100.0,
        "corrected_hardest": scores["groups"][HARDEST]["corrected"]["value"],
        "tokens_per_word": overall["tokens_per_word"]["value"],
    }


def check_scores(scores: dict[str, Any], file: str) -> None:
    """Raise ValueError for scores without what the summary reads."""
    if "corrected" not in scores["groups"].get(HARDEST, {}):
        raise ValueError(
            f"{file} has no corrected mistakes of {HARDEST}; score the miniature's test file with "
            "--slips"
        )


def stage_seconds(text: str) -> tuple[str, float]:
    """`stage=seconds` as the launcher gives it."""
    name, _, seconds = text.partition("=")
    return name, float(seconds)


def parse_arguments(argv: list[str] | None) -> Namespace:
    """Command line."""
    parser = ArgumentParser(description="Compare the trained miniature with its base.")
    add_flags(
        parser,
        base=(Needed(str), ".scores.json of the base model"),
        trained=(Needed(str), ".scores.json of the trained model"),
        run=(Needed(Path), "output_dir of the training run"),
        name=("REA-RL", "name of the trained model in table and picture"),
        out=(Needed(Path), "folder for summary.json and the picture"),
    )
    parser.add_argument(
        "--seconds", nargs="*", type=stage_seconds, default=[], help="stage=seconds"
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr if a file is missing."""
    args = parse_arguments(argv)
    own_output_folder(args.out, "out")
    scored = {"base": read_scores(args.base), args.name: read_scores(args.trained)}
    for name, file in (("base", args.base), ("trained", args.trained)):
        check_scores(scored["base" if name == "base" else args.name], file)
    made = zip((args.base, args.trained), map(known_parts, scored.values()), strict=True)
    check_all_comparable(made, "evaluate or score them again with the same settings")
    history = read_log(args.run / "trainer_state.json")
    picture = draw(history, scored, args.out / "quickstart.png")
    report = {
        "base": summary(scored["base"]),
        "trained": summary(scored[args.name]),
        "seconds": dict(args.seconds),
    }
    write_json(args.out / "summary.json", report)
    sys.stdout.write(
        f"\n{table(scored)}\nsummary: {args.out / 'summary.json'}\npicture: {picture}\n"
    )


if __name__ == "__main__":
    main()
