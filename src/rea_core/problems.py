"""Problems with their gold answers, from a local file or a Hub dataset."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from rea_core.checks import check_text, odd_characters
from rea_core.golds import PROBLEM_COLUMNS, find_answer, find_column, gold_texts
from rea_core.row_files import AnyRows, Check, Row, Rows, digest
from rea_core.rows import any_rows, check_id

logger = logging.getLogger(__name__)


def load_problems(name: str, split: str | None = None, **settings: Any) -> list[Row]:
    """Problems with their gold answers.

    Args:
        name: local file in any format of `rea_core.formats`, or Hub dataset.
        split: split of a Hub dataset.
        config: configuration of a Hub dataset.
        problem_column: default: `problem`, else `question`.
        answer_column: gold answer, in any form of `rea_core.golds`.
        gold_needed: refuse an empty gold answer. Two problems of Gaokao 2023 have one; nothing is
            right there.

    Returns:
        Rows with `id`, `problem`, `answer` (text, or several as a list) and all further columns;
        an absent `id` becomes the row number.

    Raises ValueError naming the file, and the row if one is at fault.
    """
    return list(open_problems(name, split, **settings))


def open_problems(
    name: str,
    split: str | None = None,
    *,
    config: str | None = None,
    problem_column: str | None = None,
    answer_column: str = "answer",
    gold_needed: bool = True,
    check: Check = lambda row, i: None,
) -> AnyRows:
    """The same; those of a local file are read when they are asked for.

    `check` is called with every problem and its number, and raises ValueError for further faults.
    """
    # no function of its own: rows are sent to other processes with it
    convert = partial(
        _problem,
        name=name,
        problem_column=problem_column,
        answer_column=answer_column,
        gold_needed=gold_needed,
    )
    first: dict[str, int] = {}
    asked: dict[str, list[tuple[int, Any]]] = {}  # rows and golds of each problem
    strange: list[str] = []  # rows with control characters

    def look(row: Row, i: int) -> None:
        problem = convert(row, i)
        if odd := odd_characters(problem["problem"], "\n\t\r"):
            strange.append(f"row {i} {odd[0]!r}")
        check_id(problem, i, name, first)
        check(problem, i)
        if "problem_id" not in problem:  # else they are responses; a problem has several
            text = " ".join(problem["problem"].split())
            asked.setdefault(text, []).append((i, problem["answer"]))

    rows = any_rows(name, split, config, look)
    _warn_of_duplicates(asked, name, len(rows))
    if strange:
        logger.warning(
            "%s: %d problems have control characters, as one backslash too few makes them: %s; "
            "correct those that are not meant",
            *(name, len(strange), ", ".join(strange[:5])),
        )
    if isinstance(rows, Rows):
        return rows.mapped(convert)
    return [convert(row, i) for i, row in enumerate(rows)]


def problem_digest(problem: str) -> str:
    """Fingerprint of a problem, whatever its blanks are; it tells problems of one number apart."""
    return digest([" ".join(problem.split())])


def _warn_of_duplicates(asked: dict[str, list[tuple[int, Any]]], name: str, num_rows: int) -> None:
    """Log how many problems are there more than once, and how many of these have two golds."""
    twice = [rows for rows in asked.values() if len(rows) > 1]
    torn = [rows for rows in twice if len({str(gold) for _, gold in rows}) > 1]
    if twice:
        first = ", ".join(str(i) for i, _ in twice[0][:5])
        logger.warning(
            "%s: %d problems are there more than once, in %d of %d rows; the first in rows %s",
            *(name, len(twice), sum(map(len, twice)), num_rows, first),
        )
    if torn:
        golds = ", ".join(f"row {i} {gold!r}" for i, gold in torn[0][:5])
        logger.warning(
            "%s: %d problems have two golds; the first: %s; keep the right one",
            *(name, len(torn), golds),
        )


def _problem(
    row: Row,
    i: int,
    name: str,
    problem_column: str | None,
    answer_column: str,
    gold_needed: bool,
) -> Row:
    place = f"{name}: row {i}"
    wanted = (problem_column,) if problem_column else PROBLEM_COLUMNS
    column = find_column(row, wanted)
    gold_column = (
        find_answer(row) if answer_column == "answer" else find_column(row, (answer_column,))
    )
    if column is None or gold_column is None:
        missing = repr(answer_column) if column else " or ".join(map(repr, wanted))
        raise ValueError(
            f"{place} has no column {missing}, only {sorted(row)}; problem_column and "
            "answer_column name them"
        )
    if not isinstance(row[column], str):
        raise ValueError(f"{place} has the {column!r} {row[column]!r}; write it as a text")
    try:
        golds = gold_texts(row[gold_column])
    except ValueError as error:
        raise ValueError(
            f"{place} has the {gold_column!r} {row[gold_column]!r:.60}; {error}"
        ) from None
    for gold in golds:
        check_text(gold, f"{place}: the {gold_column!r} {gold!r}")
    golds = [gold.strip() for gold in golds]
    empty = [] if row[column].strip() else [column]
    if gold_needed and not all(golds):
        empty.append(gold_column)
    if empty:
        raise ValueError(
            f"{place} has an empty {' and '.join(map(repr, empty))}; fill it in, or drop the row"
        )
    return {
        **row,
        "id": str(i if row.get("id") is None else row["id"]),
        "problem": row[column],
        "answer": golds[0] if len(golds) == 1 else golds,
    }
