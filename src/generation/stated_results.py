"""Results that a reasoning trace states, in the wording of the miniature."""

from __future__ import annotations

import re
from itertools import pairwise

from generation.reflection_words import count_reflections

_EQUATION = re.compile(r"^(\d+)(?:[-+*/]\d+)+=(\d+)$", re.MULTILINE)
_RESULT = re.compile(r"result is (\d+)")


def stated_result(paragraph: str) -> int | None:
    """The last `result is N` of a paragraph, or None if it states no result."""
    found = _RESULT.findall(paragraph)
    return int(found[-1]) if found else None


def stated_results(thinking: str) -> list[tuple[int, int]]:
    """(paragraph index, result) of every paragraph that states one, as the trace wrote them."""
    return [
        (index, result)
        for index, part in enumerate(_paragraphs(thinking))
        if (result := stated_result(part)) is not None
    ]


def _paragraphs(thinking: str) -> list[str]:
    return [part for part in re.split(r"\n{2,}", thinking) if part.strip()]


def recomputes(paragraph: str) -> bool:
    """Whether a paragraph computes: equations, each continuing with the value of the one before."""
    equations = _EQUATION.findall(paragraph)
    return bool(equations) and all(value == start for (_, value), (start, _) in pairwise(equations))


def after_first_result(thinking: str) -> list[str]:
    """Paragraphs after the first one that states a result: where re-checks are."""
    results = stated_results(thinking)
    return _paragraphs(thinking)[results[0][0] + 1 :] if results else []


def count_rechecks(thinking: str) -> int:
    """Paragraphs after the first result that really compute again, in any words.

    >>> check = "Wait, let me check. Yes."
    >>> count_rechecks(f"2+3=5\\nThe result is 5.\\n\\n{check}\\n\\n5-3=2\\nThis is the start.")
    1
    """
    return sum(recomputes(part) for part in after_first_result(thinking))


def count_empty_checks(thinking: str) -> int:
    """Paragraphs after the first result that have a reflection word and compute nothing.

    >>> check = "Wait, let me check. Yes."
    >>> count_empty_checks(f"2+3=5\\nThe result is 5.\\n\\n{check}\\n\\n5-3=2\\nThis is the start.")
    1
    """
    later = after_first_result(thinking)
    return sum(
        count_reflections(part, word_bounded=True) > 0 and not recomputes(part) for part in later
    )
