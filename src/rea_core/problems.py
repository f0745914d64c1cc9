"""Problems with their gold answers, from a local file or a Hub dataset."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from rea_core.checks import check_text, odd_characters
from rea_core.row_files import Rows, digest
from rea_core.rows import any_rows, check_id

logger = logging.getLogger(__name__)

PROBLEM_COLUMNS = ("problem", "question")
# GSM8K's answer column on the Hub holds the worked solution, then this mark and the number
GSM8K_ANSWER = "\n#### "


def load_problems(
    name: str,
    split: str | None = None,
    *,
    config: str | None = None,
    problem_column: str | None = None,
    answer_column: str = "answer",
    gold_needed: bool = True,
) -> list[dict[str, Any]]:
    """Problems with their gold answers.

    Args:
        name: local `.json` file (a list of objects), local `.jsonl` file, or Hub dataset.
        split: split of a Hub dataset.
        config: configuration of a Hub dataset.
        problem_column: default: `problem`, else `question`.
        answer_column: gold answer, text or number; of a worked GSM8K solution only what follows
            `####` is taken.
        gold_needed: refuse an empty gold answer. Two problems of Gaokao 2023 have one; nothing is
            right there.

    Returns:
        Rows with `id`, `problem`, `answer` (str) and all further columns; an absent `id` becomes
        the row number.

    Raises ValueError naming the file, and the row if one is at fault.
    """
    problems = open_problems(
        name,
        split,
        config=config,
        problem_column=problem_column,
        answer_column=answer_column,
        gold_needed=gold_needed,
    )
    return list(problems)


def open_problems(
    name: str,
    split: str | None = None,
    *,
    config: str | None = None,
    problem_column: str | None = None,
    answer_column: str = "answer",
    gold_needed: bool = True,
    check: Callable[[dict[str, Any], int], None] = lambda row, i: None,
) -> Rows | list[dict[str, Any]]:
    """The same; those of a local file are read when they are asked for. `check` raises
    ValueError for further faults."""

    def convert(row: dict[str, Any], i: int) -> dict[str, Any]:
        return _problem(row, i, name, problem_column, answer_column, gold_needed)

    first: dict[str, int] = {}
    known: list[dict[str, Any]] = []  # known columns, to find duplicates
    strange: list[str] = []  # rows with control characters

    def look(row: dict[str, Any], i: int) -> None:
        problem = convert(row, i)
        if odd := odd_characters(problem["problem"], "\n\t\r"):
            strange.append(f"row {i} {odd[0]!r}")
        check_id(problem, i, name, first)
        check(problem, i)
        known.append(
            {key: problem[key] for key in ("problem", "answer")}
            if "problem_id" not in problem
            else problem_id
        )

    problem_id = {"problem_id": True}
    rows = any_rows(name, split, config, look)
    warn_of_duplicates(known, name)
    if strange:
        logger.warning(
            "%s: %d problems have control characters, as one backslash too few makes them: %s; "
            "correct those that are not meant",
            *(name, len(strange), ", ".join(strange[:5])),
        )
    return (
        rows.mapped(convert)
        if isinstance(rows, Rows)
        else [convert(row, i) for i, row in enumerate(rows)]
    )


def problem_digest(problem: str) -> str:
    """Fingerprint of a problem, whatever its blanks are; it tells problems of one number apart."""
    return digest([" ".join(problem.split())])


def warn_of_duplicates(problems: list[dict[str, Any]], name: str) -> None:
    """Log how many problems are there more than once, and how many of these have two golds.

    Rows with a `problem_id` are responses; a problem has several.
    """
    rows_of: dict[str, list[int]] = {}
    for i, row in enumerate(problems):
        if "problem_id" not in row:
            rows_of.setdefault(" ".join(row["problem"].split()), []).append(i)
    twice = [rows for rows in rows_of.values() if len(rows) > 1]
    torn = [rows for rows in twice if len({problems[i]["answer"] for i in rows}) > 1]
    if twice:
        logger.warning(
            "%s: %d problems are there more than once, in %d of %d rows; the first in rows %s",
            *(
                name,
                len(twice),
                sum(map(len, twice)),
                len(problems),
                ", ".join(map(str, twice[0][:5])),
            ),
        )
    if torn:
        golds = ", ".join(f"row {i} {problems[i]['answer']!r}" for i in torn[0][:5])
        logger.warning(
            "%s: %d problems have two golds; the first: %s; keep the right one",
            name,
            len(torn),
            golds,
        )


def _problem(
    row: dict[str, Any],
    i: int,
    name: str,
    problem_column: str | None,
    answer_column: str,
    gold_needed: bool,
) -> dict[str, Any]:
    columns = (problem_column,) if problem_column else PROBLEM_COLUMNS
    column = next((c for c in columns if c in row), None)
    if column is None or answer_column not in row:
        missing = " or ".join(map(repr, columns)) if column is None else repr(answer_column)
        raise ValueError(
            f"{name}: row {i} has no column {missing}, only {sorted(row)}; problem_column and "
            "answer_column name them"
        )
    if not isinstance(row[column], str):
        raise ValueError(f"{name}: row {i} has the {column!r} {row[column]!r}; write it as a text")
    if not isinstance(row[answer_column], (str, int, float)) or isinstance(
        row[answer_column], bool
    ):
        raise ValueError(
            f"{name}: row {i} has the {answer_column!r} {row[answer_column]!r}; write a text or a "
            "number"
        )
    # of a set on the Hub
    if isinstance(row[answer_column], float) and not math.isfinite(row[answer_column]):
        raise ValueError(
            f"{name}: row {i} has the {answer_column!r} {row[answer_column]}; fill it in, or drop "
            "the row"
        )
    gold = str(row[answer_column]).rsplit(GSM8K_ANSWER, 1)[-1]
    check_text(gold, f"{name}: row {i}: the {answer_column!r} {gold!r}")
    answer = gold.strip()
    empty = [
        key for key, text in ((column, row[column]), (answer_column, answer)) if not text.strip()
    ]
    if column in empty or (gold_needed and empty):
        raise ValueError(
            f"{name}: row {i} has an empty {' and '.join(map(repr, empty))}; fill it in, or drop "
            "the row"
        )
    return {
        **row,
        "id": str(i if row.get("id") is None else row["id"]),
        "problem": row[column],
        "answer": answer,
    }
