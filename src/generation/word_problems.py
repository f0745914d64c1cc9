"""Word problems that a model of half a billion parameters can learn: SVAMP, ASDiv and GSM8K as the
files of `real.sh`.

    python -m generation.word_problems --out dataset/words                       # from the Hub
    # from files that are there already
    python -m generation.word_problems --out dataset/words --source FOLDER

FOLDER has `words_train.json`, `words_validation.json`, `svamp_test.json`, `asdiv_test.json`,
`gsm8k_train.json` and `GSM8K_test.json`, lists of {problem, answer[, solution, grade, source]}.
Written are, without an overlap:

    bootstrap.json     SVAMP, ASDiv and GSM8K: what solver and reasoning model learn from
    detector.json      some of these: what the reflection model learns from
    train.json         SVAMP and ASDiv of the same: what reinforcement learning trains on
    heldout.json       problems of all three sets: detector and settings are chosen on them
    test.json          the three test sets: read once, for the report

Rows have `id`, `problem`, `answer`, `benchmark` and `level`: ASDiv's grade, or the number of
GSM8K's solution steps.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
from pathlib import Path

from generation.evaluation.benchmarks import SOURCES, common_format
from rea_core.checks import check_numbers
from rea_core.command import Needed, add_flags, command
from rea_core.ownership import own_output_folder
from rea_core.row_files import Row, write_json
from rea_core.rows import read_rows

logger = logging.getLogger(__name__)

FILES = ("words_train", "words_validation", "svamp_test", "asdiv_test", "gsm8k_train", "GSM8K_test")
NUM_VALIDATION, NUM_TEST = 100, 300  # of SVAMP and of ASDiv each
NUM_DETECTOR = 1200  # problems of GSM8K that the reflection model learns from
MOST_STEPS = 8  # longer solutions of GSM8K are one level
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def fetch() -> dict[str, list[Row]]:
    """The six files' rows from the Hub: numeric answers, no problem twice, shuffled with a seed."""
    svamp = [
        _asked(f"{row['Body'].strip().rstrip('.')}. {row['Question']}", row["Answer"], "SVAMP")
        for split in ("train", "test")
        for row in read_rows("ChilleD/SVAMP", split)
    ]
    asdiv = [
        _asked(f"{row['body']} {row['question']}", row["answer"], "ASDiv")
        for row in read_rows("EleutherAI/asdiv", "validation")
    ]
    svamp_parts, asdiv_parts = _dealt(svamp), _dealt(asdiv)
    return {
        "svamp_test": svamp_parts[0],
        "asdiv_test": asdiv_parts[0],
        "words_validation": svamp_parts[1] + asdiv_parts[1],
        "words_train": svamp_parts[2] + asdiv_parts[2],
        "gsm8k_train": _gsm8k("train"),
        "GSM8K_test": _gsm8k("test"),
    }


def _asked(problem: str, answer: str, source: str) -> Row:
    return {"problem": problem, "answer": _plain(answer), "source": source}


def _plain(answer: str) -> str | None:
    """Number that begins an answer, as in ASDiv's `9 (apples)`; None if there is none."""
    found = _NUMBER.match(str(answer).strip())
    return found and found[0].replace(",", "").removesuffix(".0")


def _dealt(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """(test, validation, training) rows."""
    unique = list({row["problem"]: row for row in rows if row["answer"] is not None}.values())
    random.Random(0).shuffle(unique)
    ends = NUM_TEST, NUM_TEST + NUM_VALIDATION
    return unique[: ends[0]], unique[ends[0] : ends[1]], unique[ends[1] :]


def _gsm8k(split: str) -> list[Row]:
    source = SOURCES["GSM8K"]
    rows = [common_format(row, source) for row in read_rows(source.hub_id, split, source.config)]
    for row in rows:
        row["answer"] = row["answer"].replace(",", "")
        row["solution"] = _CALCULATOR.sub("", row["solution"])
        row["source"] = "GSM8K"
    return rows


def read_folder(folder: Path) -> dict[str, list[Row]]:
    """The six files of a folder. Raises ValueError if one is missing or malformed."""
    return {name: read_rows(str(folder / f"{name}.json")) for name in FILES}


def stage_files(files: dict[str, list[Row]], num_heldout: int) -> dict[str, list[Row]]:
    """Rows of the five files that the stages read.

    Args:
        files: rows by the names of `FILES`.
        num_heldout: problems that are taken from GSM8K's training split for the held-out ones.

    Raises ValueError for a problem of the test files among the others, by its text.
    """
    gsm8k = files["gsm8k_train"]
    stages = {
        "bootstrap": files["words_train"] + gsm8k[:-num_heldout],
        "detector": files["words_train"] + gsm8k[:NUM_DETECTOR],
        "train": files["words_train"],
        "heldout": files["words_validation"] + gsm8k[-num_heldout:],
        "test": files["svamp_test"] + files["asdiv_test"] + files["GSM8K_test"],
    }
    for name in ("bootstrap", "heldout"):
        check_disjoint(stages["test"], stages[name], name)
    check_disjoint(stages["heldout"], stages["bootstrap"], "bootstrap")
    return {
        name: [_row(name, i, row) for i, row in enumerate(rows)] for name, rows in stages.items()
    }


def check_disjoint(first: list[Row], second: list[Row], name: str) -> None:
    """Raise ValueError if two files have a problem in common."""
    texts = {_text(row) for row in first}
    if common := [row for row in second if _text(row) in texts]:
        raise ValueError(
            f"{name} has {len(common)} problems that another file holds back; remove them. The "
            f"first is {common[0]['problem'][:60]!r}"
        )


def _text(row: Row) -> str:
    return " ".join(row["problem"].lower().split())


def _row(name: str, i: int, row: Row) -> Row:
    source = row.get("source", "GSM8K")
    level = None
    if source == "GSM8K" and row.get("solution"):
        steps = len(row["solution"].partition("####")[0].strip().splitlines())
        level = f"{min(steps, MOST_STEPS)} steps"
    elif row.get("grade") is not None:
        level = f"grade {row['grade']}"
    common = {
        "id": f"{name}/{i}",
        "problem": row["problem"],
        "answer": str(row["answer"]),
        "benchmark": source,
    }
    return common | ({"level": level} if level else {})


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    parser = argparse.ArgumentParser(description="Word problems for scripts/real.sh.")
    add_flags(
        parser,
        out=(Needed(Path), "folder of the five files"),
        source=(Path, "folder with the six files; default: from the Hub"),
        num_heldout=(400, "held-out problems from GSM8K's training split"),
    )
    args = parser.parse_args(argv)
    check_numbers(vars(args), positive=("num_heldout",))
    own_output_folder(args.out, "out")
    files = read_folder(args.source) if args.source else fetch()
    for name, rows in stage_files(files, args.num_heldout).items():
        write_json(args.out / f"{name}.json", rows)
        logger.info("wrote %s: %d problems", args.out / f"{name}.json", len(rows))


if __name__ == "__main__":
    main()
