"""The kinds of things that an answer can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from generation.math_verify.region import Region
from generation.math_verify.units import Unit


@dataclass(frozen=True)
class Quantity:
    """An expression, possibly with a unit; `sure` is false if the unit could as well be a factor."""

    latex: str
    unit: Unit | None = None
    sure: bool = True


@dataclass(frozen=True)
class Words:
    """An answer in words."""

    text: str


@dataclass(frozen=True)
class Letters:
    """Options of a multiple choice."""

    letters: frozenset[str]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells."""

    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Group:
    """Several values: in braces, in round brackets, bare (solutions in any order), or bare with "or" between them."""

    kind: Literal["set", "tuple", "list", "any"]
    items: tuple[Readings, ...]


@dataclass(frozen=True)
class Relation:
    """An equation or inequality; inequalities point from small to large.

    An equation whose left side only names the right one, as `x`, `f(x)` and `(x,y)` do, has that `name`, and the
    `variable` if it is a function.
    """

    left: str
    sign: str
    right: str
    name: str | None = None
    variable: str | None = None


Value = Quantity | Words | Letters | Matrix | Group | Relation | Region
Readings = tuple[Value, ...]
