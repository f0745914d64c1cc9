"""Expressions: parsed by math-verify, evaluated exactly or to 50 digits at fixed points, and so compared."""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy2
from math_verify import LatexExtractionConfig, parse, verify
from mpmath import MPContext

from generation.math_verify.splitting import nesting

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off; the pool has one

MP = MPContext()
MP.dps = 50
MAX_DEPTH = 12  # the parser's time grows steeply with nesting (40 brackets: 8 s); golds of the six benchmarks reach 5
MAX_EXACT_BITS = 1 << 16  # larger powers are evaluated to 50 digits
MAX_ARGUMENT_BITS = 1 << 10  # a function of a larger number would need that many digits of it
SMALL_FACTORIAL = 2000
_COMMAND_OR_D = re.compile(r"\\[a-zA-Z]+|d(?=\s*[a-zA-Z])")

Value = Fraction | MP.mpc
_CONFIG = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(basic_latex=True, malformed_operators=True, boxed="none"),
)


def _number(text: str) -> sympy.Rational:
    return sympy.Rational(Fraction(text.replace(",", "")))


# The grammar hands digits to sympy as strings, which it evaluates as Python. Here they are read, decimals exactly.
latex2sympy2.Number = _number
latex2sympy2._Latex2Sympy.parse_number = lambda _, text: _number(text)


class NoValue(ArithmeticError):
    """The expression is undefined here, or too large to be known."""


class NotEvaluated(NoValue):
    """The expression is of a kind that is not evaluated here: a sum, an integral, a set, an unknown function."""


@lru_cache(maxsize=4096)
def parse_latex(latex: str) -> sympy.Basic | None:
    """Parse one expression with math-verify's LaTeX grammar; None where it cannot.

    Its route for plain expressions is not used: that goes through sympy's `parse_expr`, which evaluates the text as
    Python. `first_match` means that the whole text has to parse, not just a fraction somewhere inside it.
    """
    if not latex or nesting(latex) > MAX_DEPTH:
        return None
    if r"\int" not in latex:  # elsewhere `de` is a product and no differential
        latex = _COMMAND_OR_D.sub(lambda match: "d*" if match[0] == "d" else match[0], latex)
    found = parse(f"${latex}$", [_CONFIG], "no_fallback", "first_match", parsing_timeout=None)
    return found[0] if found else None


def agree_by_library(gold: str, prediction: str) -> bool:
    """Math-verify's own comparison, for what has no typed rule here: sums, integrals, conditions on a variable."""
    parsed = parse_latex(gold), parse_latex(prediction)
    return None not in parsed and verify(*parsed, allow_set_relation_comp=True, timeout_seconds=None)


def same_value(gold: str, prediction: str, scale: Fraction = Fraction(1)) -> bool:
    """Whether two expressions agree wherever they are evaluated, the prediction times `scale`.

    What does not parse is the same only if it is written the same.
    """
    parsed = parse_latex(gold), parse_latex(prediction)
    if None in parsed:
        return scale == 1 and gold.replace(" ", "") == prediction.replace(" ", "")
    try:
        golds, predictions = samples((gold, prediction))
    except NotEvaluated:
        return scale == 1 and agree_by_library(gold, prediction)
    return _agree(golds, [value if value is None else _multiply(value, scale) for value in predictions])


def proportional(gold: tuple[str, str], prediction: tuple[str, str], positive: bool) -> bool:
    """Whether left minus right of two relations differ by a constant factor only (a positive one for inequalities)."""
    try:
        columns = samples(gold + prediction)
    except NotEvaluated:
        return False
    rows = [row for row in zip(*columns, strict=True) if None not in row]
    differences = [(_inexact(a) - _inexact(b), _inexact(c) - _inexact(d)) for a, b, c, d in rows]
    if len(differences) < 2 or any(abs(g) < 1e-30 or abs(p) < 1e-30 for g, p in differences):
        return False
    ratios = [p / g for g, p in differences]
    return all(close(ratio, ratios[0]) for ratio in ratios) and (not positive or MP.re(ratios[0]) > 0)


def real_number(latex: str) -> Fraction | None:
    """Value of a real expression without symbols, to 30 digits if it is irrational; None if there is none."""
    node = parse_latex(latex)
    if not isinstance(node, sympy.Expr) or _symbols(node):
        return None
    try:
        value = evaluate(node, {})
    except NoValue:
        return None
    if isinstance(value, Fraction):
        return value
    return Fraction(MP.nstr(MP.re(value), 30)) if abs(MP.im(value)) < MP.mpf(10) ** -40 else None


def close(left: Value, right: Value) -> bool:
    """Equal: exactly if both are rational, so that integers have no tolerance however long; else to 25 digits."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = _inexact(left), _inexact(right)
    size = max(abs(left), abs(right))
    return bool(abs(left - right) <= size * MP.mpf(10) ** -25 or size < MP.mpf(10) ** -40)


def _agree(golds: list[Value | None], predictions: list[Value | None]) -> bool:
    pairs = list(zip(golds, predictions, strict=True))
    if any((gold is None) != (prediction is None) for gold, prediction in pairs):
        return False
    defined = [pair for pair in pairs if None not in pair]
    return bool(defined) and all(close(gold, prediction) for gold, prediction in defined)


def samples(expressions: tuple[str, ...]) -> list[list[Value | None]]:
    """Values of each expression at the points of their common symbols, None where it has none. Raises
    `NotEvaluated`."""
    nodes = [parse_latex(expression) for expression in expressions]
    if None in nodes or not all(isinstance(node, sympy.Expr) for node in nodes):
        raise NotEvaluated
    names = frozenset().union(*(_symbols(node) for node in nodes))
    whole = any(node.has(sympy.floor, sympy.ceiling) for node in nodes)
    return [[_value_at(node, point) for point in _points(names, whole)] for node in nodes]


def _points(names: frozenset[str], whole: bool) -> list[dict[str, Fraction]]:
    """Fixed positive values, different for each name: fractions, or integers where something is rounded.

    Positive, because symbols in answers are lengths, counts, or under a principal root; fixed, so that a verdict
    stays.
    """
    seeds = {name: zlib.crc32(name.encode()) for name in names}
    if not names:
        return [{}]
    if whole:
        return [{name: Fraction(5 + (seed >> 3 * i) % 31 + i) for name, seed in seeds.items()} for i in range(8)]
    return [{name: Fraction(1009 + (seed >> 5 * i) % 3001, 1201) for name, seed in seeds.items()} for i in range(4)]


def _symbols(node: sympy.Basic) -> frozenset[str]:
    return frozenset(symbol.name for symbol in node.free_symbols) - {"i"}


def _value_at(node: sympy.Basic, point: dict[str, Fraction]) -> Value | None:
    try:
        return evaluate(node, point)
    except NotEvaluated:
        raise
    except NoValue:
        return None


def evaluate(node: sympy.Basic, point: dict[str, Fraction]) -> Value:
    """Value of a parsed expression with its symbols as in `point`; the letter i is the imaginary unit.

    Rational values stay exact and a decimal counts as the rational that it writes. Nothing is expanded: the cost does
    not depend on the size of exponents. Raises `NoValue`, or `NotEvaluated`.
    """
    if isinstance(node, sympy.Rational):
        return Fraction(int(node.p), int(node.q))
    if isinstance(node, sympy.Symbol):
        return MP.mpc(0, 1) if node.name == "i" else point[node.name]
    name = type(node).__name__
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name in _UNDEFINED:
        raise NoValue(name)
    if name not in _RULES:
        raise NotEvaluated(name)
    arguments = [evaluate(argument, point) for argument in node.args]
    try:
        value = _RULES[name](*arguments)
    except (ValueError, ArithmeticError, TypeError, MP.NoConvergence) as error:  # what mpmath raises where undefined
        raise NoValue(name) from error
    if not isinstance(value, Fraction) and not MP.isfinite(value):
        raise NoValue(name)
    return value


def _inexact(value: Value) -> MP.mpc:
    return MP.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _bounded(value: Value, bits: int = MAX_ARGUMENT_BITS) -> MP.mpc:
    value = _inexact(value)
    if value and MP.mag(value) > bits:
        raise NoValue("too large")
    return value


def _whole(value: Value) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1


def _multiply(*values: Value) -> Value:
    exact = all(isinstance(value, Fraction) for value in values)
    return math.prod(values, start=Fraction(1)) if exact else MP.fprod(map(_inexact, values))


def _add(*values: Value) -> Value:
    exact = all(isinstance(value, Fraction) for value in values)
    return sum(values, Fraction(0)) if exact else MP.fsum(map(_inexact, values))


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and _whole(exponent):
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) * size <= MAX_EXACT_BITS:
            return base**exponent.numerator
    return MP.power(_bounded(base, 1 << 40), _bounded(exponent, 64))


def _factorial(value: Value) -> Value:
    if _whole(value) and 0 <= value <= SMALL_FACTORIAL:
        return Fraction(int(sympy.factorial(value.numerator)))
    return MP.gamma(_bounded(value, 64) + 1)


def _binomial(upper: Value, lower: Value) -> Value:
    if _whole(upper) and _whole(lower) and 0 <= lower <= upper <= SMALL_FACTORIAL:
        return Fraction(int(sympy.binomial(upper.numerator, lower.numerator)))
    return MP.binomial(_bounded(upper, 64), _bounded(lower, 64))


def _floor(value: Value) -> Fraction:
    value = value if isinstance(value, Fraction) else _bounded(value, 100)
    return Fraction(value.numerator // value.denominator if isinstance(value, Fraction) else int(MP.floor(value)))


def _log(value: Value, base: Value | None = None) -> Value:
    logarithm = MP.log(_bounded(value, 1 << 40))
    return logarithm if base is None else logarithm / MP.log(_bounded(base))


def _function(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    return lambda value: function(_bounded(value))


_UNDEFINED = {"NaN", "ComplexInfinity", "Infinity", "NegativeInfinity"}
_CONSTANTS = {"Pi": +MP.pi, "Exp1": +MP.e, "ImaginaryUnit": MP.mpc(0, 1)}
_RULES: dict[str, Callable[..., Value]] = {
    "Add": _add,
    "Mul": _multiply,
    "Pow": _power,
    "log": _log,
    "exp": lambda value: MP.exp(_bounded(value, 64)),
    "factorial": _factorial,
    "binomial": _binomial,
    "floor": _floor,
    "ceiling": lambda value: -_floor(-value),
    "Abs": abs,
    "UnevaluatedExpr": lambda value: value,
    "Max": lambda *values: max(values, key=_inexact),
    "Min": lambda *values: min(values, key=_inexact),
}
for _name in "sin cos tan cot sec csc asin acos atan acot sinh cosh tanh asinh acosh atanh".split():
    _RULES[_name] = _function(getattr(MP, _name))
