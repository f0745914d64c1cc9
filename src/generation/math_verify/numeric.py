"""Values of nodes: evaluated to many digits, at points that tell functions apart, and compared."""

from __future__ import annotations

import math
import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial

from mpmath import MPContext

from generation.math_verify.parsing import LOG_BASE, NUMBER_SETS, Node, canonical, is_kind
from generation.math_verify.units import unit

MP = MPContext()
DIGITS, MORE_DIGITS, MOST_DIGITS = 50, 120, 250
MP.dps = DIGITS
MAX_BITS = 1 << 10  # a function of a larger number would need that many digits of it
MAX_POWER_BITS = 64  # likewise of an exponent, or what a factorial is taken of
MAX_INTEGER_BITS = 160  # that are known
MAX_FACTORIAL = 100_000  # exactly
TINY = MP.mpf("1e-30")  # what the last digits of a value may be wrong by
MODULUS = (
    1 << 127
) - 1  # a prime: integers too large to be written are compared by their remainders
NUM_POINTS, MIN_POINTS = 18, 3
SIZES = (1, 3, 10, 40, 300, 20_000)  # of the values of symbols
CONSTANTS = {r"\pi": MP.pi, "e": MP.e, "i": MP.mpc(0, 1), r"\infty": MP.inf, LOG_BASE: MP.mpf(10)}
INDICES = frozenset("ijklmnpqN")  # symbols that stand for integers where something is rounded
_SYMBOL = re.compile(  # in a canonical text, other than signs and units
    r"unit\(\S*?\)|\\(?:le|ge|ne|in)(?![a-z])|(sub\((?:[^()]|\([^()]*\))*\)|\\[a-zA-Z]+|call\([a-zA-Z]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))"
)
Value = MP.mpf | MP.mpc
# What is raised where there is no value: by mpmath, by tables, by cases.
_UNKNOWN = (
    ArithmeticError,
    AttributeError,
    KeyError,
    StopIteration,
    TypeError,
    ValueError,
    MP.NoConvergence,
)


class NoValue(ArithmeticError):
    """The node is undefined here, too large to be known, or no number."""


class Point(dict):
    """Values of symbols, made when they are asked for: the same for one name at one index.

    Args:
        index: Number of the point. Points differ in size and signs; every other one has integers
            only.
        whole: Whether all values are integers.
        real: Whether roots of negative numbers are undefined rather than complex.
        known: Values that are given.
    """

    def __init__(
        self, index: int = 0, whole: bool = False, real: bool = False, known: dict | tuple = ()
    ) -> None:
        super().__init__(known)
        self.index, self.whole, self.real = index, whole or index % 2, real

    def __missing__(self, name: str) -> Fraction | Value:
        if name in CONSTANTS:
            return CONSTANTS[name]
        draw = random.Random(f"{name} {self.index}")
        value = draw.randint(1, SIZES[self.index // 3 % len(SIZES)] + 2) - Fraction(
            0 if self.whole else draw.randrange(997), 997
        )
        self[name] = value * draw.choice((1, -1 if self.index % 3 else 1))
        return self[name]

    def at(self, name: str, value: Fraction | Value) -> Point:
        """The point with another value of one symbol."""
        return Point(self.index, self.whole, self.real, {**self, name: value})


def symbols(node: Node) -> set[str]:
    """Free symbols."""
    bound = symbols(node[-1]) if is_kind(node, "sum", "prod", "integral", "builder") else set()
    return {*_SYMBOL.findall(canonical(node))} - bound - {"", *CONSTANTS, *NUMBER_SETS}


def evaluate(node: Node, point: Point) -> Value:
    """Value of a node with its symbols as in `point`; the letter i is the imaginary unit.

    Nothing is expanded: the cost does not depend on the size of exponents. Raises `NoValue`.
    """
    if isinstance(node, Fraction):
        return MP.convert(node)
    if isinstance(node, str):
        return +MP.convert(point[node])
    kind, *parts = node
    try:
        if kind in SPECIAL:
            return SPECIAL[kind](point, *parts)
        values = [evaluate(part, point) for part in parts]
        limit = MAX_POWER_BITS if kind in ("power", "factorial", "binomial") else MAX_BITS
        if kind not in _ARITHMETIC and any(
            value and MP.mag(value) > limit for value in values[kind == "power" :]
        ):
            raise NoValue(kind)
        rule = _RULES.get(kind) or getattr(MP, kind)  # mpmath's functions by their names
        value = rule(*values)
    except _UNKNOWN as error:
        raise NoValue(kind) from error
    base = (
        parts[kind != "power"]
        if kind in ("root", "log") or kind == "power" and not MP.isint(values[1])
        else ""
    )
    factors = (
        [part for part in base[1:] if isinstance(part, str)]
        if is_kind(base, "times", "over")
        else []
    )
    # Roots of products are meant for lengths and the like.
    imaginary = (
        isinstance(value, MP.mpc)
        and value.imag
        or any(symbols(part) and evaluate(part, point) < 0 for part in factors)
    )
    if point.real and imaginary or not MP.isfinite(value) and all(map(MP.isfinite, values)):
        raise NoValue(kind)
    return value


def same_value(gold: Node, prediction: Node) -> bool:
    """Whether two expressions agree as functions of their symbols, wherever they are evaluated."""
    texts = canonical(gold), canonical(prediction)
    if texts[0] == texts[1]:
        return True
    free = symbols(gold) | symbols(prediction)
    try:
        if not free:
            return _remainder(gold) == _remainder(prediction)
    except _UNKNOWN:  # not rational
        pass
    text = " ".join(texts)
    real = free and not re.search("(?<![a-z])i(?![a-z])", text)
    constant, jumps = not free and "unit(" not in text, re.search("floor|ceil|cases", text)
    integers = r"congruence\(|power\(minus\(1\)|sum\(|prod\("
    whole = re.search(integers, text) or jumps and free <= INDICES
    rough = re.search(r"integral\(|\\infty", text)  # such values are good to fewer digits
    points = [Point(index, whole, real) for index in range(1 if constant else NUM_POINTS)]
    points += [
        Point(real=real, known=dict.fromkeys(free, Fraction(jump)))
        for jump in range(-9, 40)
        if jumps
    ]
    agreeing, gaps = [], 0
    for point in points:
        values = [value_at(node, point) for node in (gold, prediction)]
        gaps += values.count(None) == 1 and not point.whole
        if None not in values:
            if not close(*values) and not _vanishes(gold, prediction, point, rough, MORE_DIGITS):
                return False
            agreeing.append(point)
    # A few points may have a value on one side only, but not where cases are told apart.
    enough = gaps <= (0 if "cases" in text else 2) and len(agreeing) >= (
        1 if constant else MIN_POINTS
    )
    return enough and _vanishes(gold, prediction, agreeing[0], rough, MOST_DIGITS)


def _vanishes(gold: Node, prediction: Node, point: Point, rough: bool, digits: int) -> bool:
    """Whether a difference is zero: it gets smaller with more digits, or lies beyond them."""
    sizes = []
    for precision in (DIGITS, DIGITS if rough else digits):
        with MP.workdps(precision):
            left, right = evaluate(gold, point), evaluate(prediction, point)
            sizes.append(abs(left - right))
            beyond = max(abs(left), abs(right)) * MP.mpf(10) ** (-15 if rough else -0.7 * digits)
    return MP.isfinite(beyond) and sizes[1] <= max(
        beyond, sizes[0] * MP.mpf(10) ** (0.6 * (DIGITS - digits))
    )


def value_at(node: Node, point: Point) -> Value | None:
    """Value, or None where there is none."""
    try:
        return evaluate(node, point)
    except NoValue:
        return None


def real_number(node: Node) -> Value | None:
    """Value of a real expression without symbols, None if there is none; units do not count."""
    value = None if symbols(node) else value_at(without_units(node), Point())
    return MP.re(value) if value is not None and abs(MP.im(value)) < TINY else None


def without_units(node: Node) -> Node:
    """The node with one in place of each unit."""
    if is_kind(node, "unit"):
        return Fraction(1)
    return tuple(map(without_units, node)) if isinstance(node, tuple) else node


def close(left: Value, right: Value) -> bool:
    """Equal to 25 digits."""
    return MP.almosteq(left, right, 1e-25, 0)


def _remainder(node: Node) -> int:
    """Value of a rational expression modulo a prime; for others it raises one of several errors."""
    if not isinstance(node, tuple):
        return node.numerator * pow(node.denominator, -1, MODULUS) % MODULUS
    kind, *parts = node
    if kind == "power":
        return pow(_remainder(parts[0]), _integer(evaluate(parts[1], Point())), MODULUS)
    if kind == "factorial":
        number = _integer(evaluate(parts[0], Point()))
        return math.factorial(number if number <= MAX_FACTORIAL else -1) % MODULUS
    *others, last = map(_remainder, parts)
    if kind in ("inverse", "over"):
        kind, last = "times", pow(last, -1, MODULUS)
    return _ARITHMETIC[kind](*others, last) % MODULUS


def _integer(value: Value) -> int:
    if not MP.isint(value) or MP.mag(value) > MAX_INTEGER_BITS:
        raise NoValue("no integer")
    return int(value)


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, MP.mpf) and base < 0 and not MP.isint(exponent):
        for root in range(3, 100, 2):  # an odd root is real
            times = MP.nint(root * exponent)
            if MP.almosteq(root * exponent, times):
                return (-1) ** int(times) * MP.power(-base, exponent)
    return MP.power(base, exponent)


_ARITHMETIC = {
    "plus": lambda *values: sum(values),
    "times": lambda *values: math.prod(values),
    "minus": operator.neg,
    "inverse": lambda value: 1 / value,
    "over": operator.truediv,
}
_RULES = _ARITHMETIC | {
    "max": max,
    "min": min,
    "power": _power,
    "root": lambda degree, value: _power(value, 1 / degree),
    "log": lambda base, value: MP.log(value, base),
    "floor": lambda value: MP.floor(value + TINY),
    "ceil": lambda value: MP.ceil(value - TINY),
    "binomial": lambda n, k: MP.nan if MP.isint(n) and n < 0 else MP.binomial(n, k),
}


def _series(
    total: Callable, infinite: Callable, point: Point, low: Node, high: Node, body: Node, name: str
) -> Value:
    first, last = evaluate(low, point), evaluate(high, point)
    if last == MP.inf:
        return infinite(lambda index: evaluate(body, point.at(name, index)), [first, last])
    if last < first - 1:
        raise NoValue("backwards")
    steps = range(_integer(last - first) + 1)
    return total(evaluate(body, point.at(name, first + step)) for step in steps)


def _call(point: Point, name: str, argument: Node) -> Value:
    """An unknown function of an argument, or a product: f, g and derived ones are functions."""
    unknown = name[0] in "fg" or name[-1] in ")~"
    return evaluate(
        canonical(("call", name, argument)) if unknown else ("times", name, argument), point
    )


# Nodes whose parts are not all evaluated at the same point.
SPECIAL = {
    "sum": partial(_series, MP.fsum, MP.nsum),
    "prod": partial(_series, math.prod, MP.nprod),
    "integral": lambda point, low, high, body, name: MP.quad(
        lambda value: evaluate(body, point.at(name, value)),
        [evaluate(low, point), evaluate(high, point)],
    ),
    "call": _call,
    "unit": lambda point, name: evaluate(unit(name), point),
}
