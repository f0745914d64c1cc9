r"""The gold answer of a row, in the forms in which data sets write it.

answer, final_answer, ...     the answer itself, a text or a number; of a list each one is right
the same                      a worked solution that ends in `#### 42` (GSM8K) or in \boxed{42}
solution                      such a solution, if there is no answer
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from rea_core.boxes import last_boxed
from rea_core.row_files import Row

PROBLEM_COLUMNS = ("problem", "question")
ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "ground_truth", "target", "gold")
SOLUTION = "solution"
# GSM8K's answer column holds the worked solution, then this mark and the number
_GSM8K = re.compile(r"(?:^|\n)[ \t]*####[ \t]*([^\n]+)\s*$")


def find_column(row: Row, names: Iterable[str]) -> str | None:
    """First of these columns that a row has, in capitals or not. One without a value comes last:
    tables have a cell for every column."""
    known = {key.casefold(): key for key in reversed(row)} | {key: key for key in row}
    found = [known[name] for name in names if name in known]
    return next((key for key in found if row[key] is not None), next(iter(found), None))


def find_answer(row: Row) -> str | None:
    """Column with the gold answer, or with a solution that states it; None if there is none."""
    column = find_column(row, (*ANSWER_COLUMNS, SOLUTION))
    if column is None or column.casefold() != SOLUTION:
        return column
    return column if isinstance(row[column], str) and stated_answer(row[column]) else None


def gold_texts(value: Any) -> list[str]:
    """Golds of a column with answers, blanks around them included: of a worked solution the one
    that it states.

    Raises ValueError with a remedy for a value of another type, and for a number that is NaN or
    infinite.
    """
    if isinstance(value, list) and value:
        return list(dict.fromkeys(gold for one in value for gold in gold_texts(one)))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("write a text or a number")
    if isinstance(value, float):
        return [_number(value)]
    text = str(value)
    return [stated_answer(text) or text]


def stated_answer(text: str) -> str | None:
    r"""Answer that a worked solution states, in a last line `#### 42` or in its last \boxed{}; None
    if it states none.

    >>> stated_answer("6 x 7 = 42\n#### 42"), stated_answer("$\\boxed{\\frac{1}{2}}$.")
    ('42', '\\frac{1}{2}')
    """
    marked = _GSM8K.search(text)
    return marked[1] if marked else last_boxed(text)


def as_list(answer: str | list[str]) -> list[str]:
    """Golds of a row; each of them is right."""
    return answer if isinstance(answer, list) else [answer]


def _number(value: float) -> str:
    """A number without an exponent; a whole one without a fraction."""
    if not math.isfinite(value):
        raise ValueError("fill it in, or drop the row")
    return format(Decimal(int(value) if value.is_integer() else repr(value)), "f")
