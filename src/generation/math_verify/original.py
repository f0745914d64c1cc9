"""Mode `original`: the leniencies under which the published numbers were made, for scores that
compare with the paper's.

The original accepts an answer if any of three checkers does. Beyond a right answer they accept: the
gold times or divided by 100, a relative error of 1e-3, brackets and bases ignored. Their units,
which include single letters, are not imitated.
"""

from __future__ import annotations

import math
import re

from generation.math_verify.compare import equivalent
from generation.math_verify.normalize import normalize
from generation.math_verify.numeric import real_number
from generation.math_verify.reading import read

RELATIVE_TOLERANCE = 1e-3
_BRACKETS = re.compile(r"^\s*(?:\\\{|[(\[])|(?:\\\}|[)\]])\s*$")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BASE = re.compile(r"_\{?\w+\}?$")


def equivalent_original(gold: str, prediction: str) -> bool:
    """Compare a pair as the original does: strictly equal, or equal by its leniencies."""
    if equivalent(gold, prediction):
        return True
    bare = [_BRACKETS.sub("", _THOUSANDS.sub("", normalize(text))) for text in (gold, prediction)]
    golds, predictions = ([_value(part) for part in text.split(",")] for text in bare)
    return (
        len(golds) == len(predictions)
        and None not in golds + predictions
        and all(map(_near, golds, predictions))
    )


def _value(text: str) -> float | None:
    numbers = [real_number(node) for node in read(_BASE.sub("", text.strip()))]
    return next(
        (float(number) for number in numbers if number is not None and abs(number) < 1e300), None
    )


def _near(gold: float, prediction: float) -> bool:
    return any(
        math.isclose(prediction, gold * factor, rel_tol=RELATIVE_TOLERANCE)
        for factor in (1, 0.01, 100)
    )
