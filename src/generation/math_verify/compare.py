"""Whether two answers are the same value."""

from __future__ import annotations

import re
from fractions import Fraction

from generation.math_verify.extract import MAX_LENGTH
from generation.math_verify.normalize import normalize
from generation.math_verify.numeric import agree_by_library, proportional, real_number, same_value
from generation.math_verify.reading import read
from generation.math_verify.region import Region, same_region
from generation.math_verify.splitting import nesting
from generation.math_verify.values import Group, Letters, Matrix, Quantity, Readings, Relation, Value, Words
from generation.math_verify.words import same_words

MAX_NESTING = 30  # brackets; an answer has a few
MIN_DIGITS = 3  # significant digits from which a decimal gold can be a rounded one


def equivalent(gold: str, prediction: str) -> bool:
    """Compare one gold with one prediction, without a bound on time: for use inside a worker."""
    if max(len(gold), len(prediction)) > MAX_LENGTH:
        return False
    gold, prediction = normalize(gold), normalize(prediction)
    if not gold or not prediction:
        return False
    if gold == prediction or max(nesting(gold), nesting(prediction)) > MAX_NESTING:
        return gold == prediction
    return same_readings(read(gold), read(prediction))


def same_readings(gold: Readings, prediction: Readings) -> bool:
    """Whether some reading of the one is the same as some reading of the other."""
    return any(same(g, p) for g in gold for p in prediction)


def same(gold: Value, prediction: Value) -> bool:
    """Compare two readings. What differs in kind differs, but for the conversions in the first lines."""
    if isinstance(gold, Group) and gold.kind == "any" and any(same_readings(i, (prediction,)) for i in gold.items):
        return True  # "2 or -2" as gold means that either is right
    if isinstance(prediction, Relation) and prediction.sign == "=" and not isinstance(gold, Relation):
        return same_readings((gold,), read(prediction.right))
    if isinstance(gold, Relation) and gold.name and not isinstance(prediction, Relation):
        return same_readings(read(gold.right), (prediction,))
    if isinstance(gold, Group) != isinstance(prediction, Group):
        group, other = (gold, prediction) if isinstance(gold, Group) else (prediction, gold)
        single = group.kind == "set" and len(group.items) == 1  # {-2} and -2 are one solution
        return single and same_readings(group.items[0], (other,))
    if isinstance(gold, Region | Relation) and isinstance(prediction, Region | Relation):
        return _same_condition(gold, prediction)
    rule = _RULES.get(type(gold))
    return rule is not None and type(gold) is type(prediction) and rule(gold, prediction)


def _same_condition(gold: Region | Relation, prediction: Region | Relation) -> bool:
    if isinstance(gold, Region) and isinstance(prediction, Region):
        return same_region(gold, prediction)
    if isinstance(gold, Relation) and isinstance(prediction, Relation):
        return _same_relation(gold, prediction)
    sides = (gold, prediction)  # such as x^2 < 3 and an interval
    return agree_by_library(*(s.latex if isinstance(s, Region) else s.left + s.sign + s.right for s in sides))


def _same_relation(gold: Relation, prediction: Relation) -> bool:
    if gold.sign != prediction.sign:
        return False
    names = {gold.name, prediction.name}
    if None not in names:
        graph = "y" in names and (gold.variable is None) != (prediction.variable is None)  # y = 2x draws f(x) = 2x
        if graph or len(names) == 1:
            right = _rename(prediction.right, prediction.variable, gold.variable)
            return same_readings(read(gold.right), read(right))
    return proportional((gold.left, gold.right), (prediction.left, prediction.right), positive=gold.sign != "=")


def _rename(latex: str, variable: str | None, target: str | None) -> str:
    """Rename the argument of a function, whose name means nothing: `f(t)=2t` is `f(x)=2x`."""
    if None in (variable, target) or variable == target:
        return latex
    return re.sub(rf"\\[a-zA-Z]+|{variable}", lambda match: target if match[0] == variable else match[0], latex)


def _same_group(gold: Group, prediction: Group) -> bool:
    """Tuples have an order, and so has a bare list beside a tuple; sets and lists have none."""
    kinds = {gold.kind, prediction.kind}
    if len(gold.items) != len(prediction.items) or kinds == {"set", "tuple"}:
        return False
    if "tuple" in kinds:
        return all(same_readings(g, p) for g, p in zip(gold.items, prediction.items, strict=True))
    left = list(prediction.items)
    for item in gold.items:
        match = next((other for other in left if same_readings(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_quantity(gold: Quantity, prediction: Quantity) -> bool:
    """Compare in one unit; a unit that only one side has was left out by the other."""
    if gold.unit and prediction.unit:
        scale = prediction.unit.size / gold.unit.size
        return gold.unit.dimensions == prediction.unit.dimensions and same_value(gold.latex, prediction.latex, scale)
    unit = gold.unit or prediction.unit
    if unit is None:
        return same_value(gold.latex, prediction.latex) or _rounds_to(prediction.latex, gold.latex)
    if not (gold.sure and prediction.sure):
        return False
    scale = 1 / unit.size if gold.unit else unit.size
    if not unit.dimensions or unit.of("percent"):
        if same_value(gold.latex, prediction.latex, scale):
            return True
        # "3 million" without its unit is another number, and 0.34 is not 0.34%; but 34 may be 34% without its sign.
        omitted = unit.of("percent") and (gold.unit or abs(real_number(gold.latex) or 0) > 1)
        return bool(omitted) and same_value(gold.latex, prediction.latex)
    if unit.of("degree") and _same_angle(gold, prediction):
        return True
    return same_value(gold.latex, prediction.latex)


def _same_angle(gold: Quantity, prediction: Quantity) -> bool:
    degrees, radians = (gold, prediction) if gold.unit else (prediction, gold)
    return same_value(rf"({degrees.latex})\cdot \frac{{\pi}}{{180}}", radians.latex)


def _rounds_to(exact: str, decimal: str) -> bool:
    """Whether a decimal gold is the rounded value of a prediction that no decimal equals, as 5.48 is of the root of
    30.

    That is all the tolerance there is: a decimal that differs from the gold is another number.
    """
    if not re.fullmatch(r"-?\d*\.\d+", decimal) or len(decimal.lstrip("-0.").replace(".", "")) < MIN_DIGITS:
        return False
    value = real_number(exact)
    if value is None or re.fullmatch(r"-?[\d.]+", exact):
        return False
    half_unit = Fraction(1, 2 * 10 ** len(decimal.partition(".")[2]))
    unending = (value * 10**20).denominator > 1
    return unending and abs(value - Fraction(decimal)) <= half_unit


def _same_matrix(gold: Matrix, prediction: Matrix) -> bool:
    shapes = [(len(matrix.rows), len(matrix.rows[0])) for matrix in (gold, prediction)]
    cells = [[cell for row in matrix.rows for cell in row] for matrix in (gold, prediction)]
    return shapes[0] == shapes[1] and all(same_readings(read(g), read(p)) for g, p in zip(*cells, strict=True))


_RULES = {
    Quantity: _same_quantity,
    Words: lambda gold, prediction: same_words(gold.text, prediction.text),
    Letters: lambda gold, prediction: gold == prediction,
    Group: _same_group,
    Matrix: _same_matrix,
}
