"""Rows that cannot be trained on: left out, counted and named, unless they are many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from generation.rendering import TemplateRefusal
from rea_core.row_files import Row

logger = logging.getLogger(__name__)

T = TypeVar("T")
# So many next to each other have a common cause, such as a message that the template never takes.
MOST_IN_A_ROW = 16
MOST_NAMED = 10  # rows in a line of the log


def made_of_rows(
    name: str, rows: Iterable[Row], make: Callable[[Row], T]
) -> list[tuple[int, Row, T]]:
    """Number of each row, the row, and what is made of it; without those that `make` refuses.

    Args:
        name: of the file, for messages.
        rows: with an `id`, if they have one.
        make: raises TemplateRefusal for a row that cannot be rendered.

    Raises ValueError naming file and row if many rows in a row are refused, or all, and for any
    other ValueError of `make`.
    """
    made: list[tuple[int, Row, T]] = []
    refused: list[str] = []
    first = last = ""
    in_a_row = 0
    for i, row in enumerate(rows):
        try:
            made.append((i, row, make(row)))
            in_a_row = 0
        except TemplateRefusal as error:
            refused.append(f"{i} ({row['id']!r})" if "id" in row else str(i))
            last = f"row {refused[-1]}: {error}"
            first, in_a_row = first or last, in_a_row + 1
            if in_a_row > MOST_IN_A_ROW:
                raise ValueError(f"{name}: {in_a_row} rows in a row are refused; {last}") from error
        except ValueError as error:
            raise ValueError(f"{name}: row {i}: {error}") from error
    if refused and not made:
        raise ValueError(f"{name}: {first}")
    if refused:
        logger.warning(
            "%s: %d of %d rows are refused and left out: rows %s; the first: %.300s",
            *(name, len(refused), len(made) + len(refused), named(refused), first),
        )
    return made


def named(ids: list[str]) -> str:
    """The first ids of a list, for a line of the log."""
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return ", ".join(ids[:MOST_NAMED]) + more
