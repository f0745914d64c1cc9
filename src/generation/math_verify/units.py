"""Units of measurement, with their sizes: what follows (or, for money, precedes) a value."""

from __future__ import annotations

import re
from fractions import Fraction

from generation.math_verify.tables import read_names

_UNITS = {
    name + end: size for name, size in read_names("units.txt").items() for end in ("", "s", "es")
}
_NOUN = re.compile(
    "(?i:people|men|women|children|feet|teeth|geese|mice|sheep|fish|dice|data|series|solution)"
    "|[a-zA-Z]{2,}[a-rt-z]s"
)


def is_unit(name: str) -> bool:
    """Whether a word is in the table of units, in any number; a letter only in its own case."""
    return (name if len(name) < 2 or name in _UNITS else name.lower()) in _UNITS


def is_noun(name: str) -> bool:
    """Whether a word is a plural, which a number may count: `3 apples`, not `3 lakh`."""
    return _NOUN.fullmatch(name) is not None


def unit(name: str) -> tuple:
    """A unit as a node: its size times symbols for the base units.

    A noun is a base unit of its own.
    """
    size, *bases = _UNITS.get(
        name, _UNITS.get(name.lower(), f"1 {name.lower().removesuffix('s')}")
    ).split()
    return (
        "times",
        Fraction(size),
        *(("inverse", base[1:]) if base[0] == "/" else base for base in bases),
    )
