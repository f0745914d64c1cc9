r"""Parts of the real line: intervals with their brackets, inequalities, unions, points left out.

`[2,3)`, `2\le x<3`, `\{x|2\le x<3\}` and `x\in[2,3)` are read as the same region.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from generation.math_verify.numeric import real_number, same_value
from generation.math_verify.splitting import inside, split_top

End = Fraction | float | str  # a number, an infinity, or LaTeX of an end that depends on a symbol

NAME = r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|lambda|mu|omega|phi|theta|varphi))(?:_(?:\w|\{\w+\}))?"
_COMPARISON = re.compile(r"\s*(?:[<>]|\\(?:le|ge|ne)(?![a-zA-Z]))\s*")
_REALS = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\(-\\infty ?, ?\\infty ?\)")
_BUILDER = re.compile(rf"\\\{{\s*{NAME}\s*(?:\\in\s*\\mathbb\s*\{{?\s*R\s*\}}?)?\s*[|:]\s*(?P<condition>.*)\\\}}")
_MEMBER = re.compile(rf"(?P<name>{NAME})\s*\\in(?![a-zA-Z])\s*(?P<set>.*)")
_INTERVAL = re.compile(r"(?P<left>[\[(\]])(?P<body>.*)(?P<right>[\])\[])")
_UNION = re.compile(r"\s*\\cup(?![a-zA-Z])\s*|\s+U\s+")
_MINUS = re.compile(r"\s*\\setminus(?![a-zA-Z])\s*")
_OR = re.compile(r",?\s*(?<![a-zA-Z])or(?![a-z])\s*")
_AND = re.compile(r",?\s*(?<![a-zA-Z])and(?![a-z])\s*|\s*[,;]\s*")
_COMMA = re.compile(r"\s*[,;]\s*")


@dataclass(frozen=True)
class Span:
    """An interval between two ends; a point is closed and has equal ends."""

    low: End
    high: End
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True)
class Region:
    """Union of spans, sorted and merged if all ends are numbers; `variable` is the free variable, if one was named."""

    latex: str
    spans: tuple[Span, ...]
    variable: str | None = None


_LINE = Span(-math.inf, math.inf, False, False)


def read_region(text: str) -> Region | None:
    """Read a region in set notation or as inequalities in one variable; None if it is neither."""
    if match := _BUILDER.fullmatch(text):
        condition = _read_condition(match["condition"])
        return Region(text, condition[0]) if condition else None
    if match := _MEMBER.fullmatch(text):
        spans = _read_set(match["set"])
        return Region(text, spans, match["name"]) if spans else None
    if spans := _read_set(text):
        return Region(text, spans)
    condition = _read_condition(text)
    return Region(text, *condition) if condition else None


def same_region(gold: Region, prediction: Region) -> bool:
    """Equal ends and brackets; two free variables must be the same one."""
    if None not in (gold.variable, prediction.variable) and gold.variable != prediction.variable:
        return False
    if len(gold.spans) != len(prediction.spans):
        return False
    return all(
        (g.low_closed, g.high_closed) == (p.low_closed, p.high_closed)
        and _same_end(g.low, p.low)
        and _same_end(g.high, p.high)
        for g, p in zip(gold.spans, prediction.spans, strict=True)
    )


def _same_end(gold: End, prediction: End) -> bool:
    if isinstance(gold, str) and isinstance(prediction, str):
        return same_value(gold, prediction)
    return gold == prediction


def _end(latex: str) -> End:
    latex = latex.strip()
    infinity = {r"\infty": math.inf, r"-\infty": -math.inf, r"- \infty": -math.inf}.get(latex)
    number = real_number(latex) if infinity is None else infinity
    return latex if number is None else number


def _read_set(text: str, within: bool = False) -> tuple[Span, ...]:
    """Spans of an interval, a union, the line with points left out; of a set of points only `within` a union."""
    parts = split_top(text, _UNION)
    if len(parts) > 1:
        read = [_read_set(part, within=True) for part in parts]
        return _merge([span for spans in read for span in spans]) if all(read) else ()
    base, *left_out = split_top(text, _MINUS)
    if len(left_out) == 1 and (points := _read_set(left_out[0], within=True)):
        spans = _read_set(base)
        return _intersect(spans, _complement(points)) if spans and _numeric(spans + points) else ()
    if _REALS.fullmatch(text):
        return (_LINE,)
    if within and (body := inside(text, r"\{", r"\}")):
        ends = [_end(part) for part in split_top(body, _COMMA)]
        return _merge([Span(end, end, True, True) for end in ends])
    match = _INTERVAL.fullmatch(text)
    ends = split_top(match["body"], _COMMA) if match else []
    if len(ends) != 2 or not all(ends):
        return ()
    return (Span(_end(ends[0]), _end(ends[1]), match["left"] == "[", match["right"] == "]"),)


def _read_condition(text: str) -> tuple[tuple[Span, ...], str] | None:
    """Spans and variable of inequalities joined by "or", "and", commas (which mean "and" unless nothing would be
    left)."""
    for separator in (_OR, _AND):
        parts = split_top(text, separator)
        if len(parts) > 1:
            read = [_read_point(part) or _read_condition(part) for part in parts]
            if None in read or len({variable for _, variable in read}) > 1 or all(map(_read_point, parts)):
                return None
            spans, variable = read[0]
            union = _merge([span for spans, _ in read for span in spans])
            if separator is _AND:
                for other, _ in read[1:]:
                    spans = _intersect(spans, other) if _numeric(spans + other) else ()
                union = spans or (union if "," in text else ())
            return (union, variable) if union else None
    return _read_chain(text)


def _read_point(text: str) -> tuple[tuple[Span, ...], str] | None:
    """Read `x = a` as one of several conditions; by itself it is an equation."""
    name, _, value = (part.strip() for part in text.partition("="))
    if not value or not re.fullmatch(NAME, name) or real_number(value) is None:
        return None
    return (Span(_end(value), _end(value), True, True),), name


def _read_chain(text: str) -> tuple[tuple[Span, ...], str] | None:
    r"""Read `a < x`, `a < x \le b`, `x \ne a`, `|x| < a`."""
    tokens = split_top(text, _COMPARISON, keep=True)
    if len(tokens) not in (3, 5):
        return None
    if ">" in tokens[1] or "ge" in tokens[1]:  # from small to large
        tokens = [{">": "<", r"\ge": r"\le"}.get(token, token) for token in reversed(tokens)]
    operators = tokens[1::2]
    if len(tokens) == 5:
        low, first, name, second, high = tokens
        known = {first, second} <= {"<", r"\le"} and re.fullmatch(NAME, name)
        return ((Span(_end(low), _end(high), first != "<", second != "<"),), name) if known else None
    left, operator, right = tokens
    names = [re.fullmatch(NAME, side) is not None for side in (left, right)]
    if operators == [r"\ne"] and names[0]:
        point = _end(right)
        return (Span(-math.inf, point, False, False), Span(point, math.inf, False, False)), left
    if operator not in ("<", r"\le"):
        return None
    closed = operator != "<"
    if match := re.fullmatch(rf"\|({NAME})\|", left):
        return (Span(_end(f"-({right})"), _end(right), closed, closed),), match[1]
    if names == [True, False]:
        return (Span(-math.inf, _end(right), False, closed),), left
    if names == [False, True]:
        return (Span(_end(left), math.inf, closed, False),), right
    return None


def _numeric(spans: tuple[Span, ...] | list[Span]) -> bool:
    return not any(isinstance(end, str) for span in spans for end in (span.low, span.high))


def _merge(spans: list[Span]) -> tuple[Span, ...]:
    """Sort, and join spans that overlap or touch (`(0,1]` and `[1,2)`, not `(0,1)` and `(1,2)`)."""
    if not _numeric(spans):
        return tuple(spans)
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.low, not span.low_closed)):
        last = merged[-1] if merged else None
        if last and (span.low < last.high or (span.low == last.high and (span.low_closed or last.high_closed))):
            high, closed = max((last.high, last.high_closed), (span.high, span.high_closed))
            merged[-1] = Span(last.low, high, last.low_closed, closed)
        else:
            merged.append(span)
    return tuple(merged)


def _intersect(left: tuple[Span, ...], right: tuple[Span, ...]) -> tuple[Span, ...]:
    common = []
    for a in left:
        for b in right:
            low, low_open = max((a.low, not a.low_closed), (b.low, not b.low_closed))
            high, high_closed = min((a.high, a.high_closed), (b.high, b.high_closed))
            if low < high or (low == high and not low_open and high_closed):
                common.append(Span(low, high, not low_open, high_closed))
    return _merge(common)


def _complement(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    result: tuple[Span, ...] = (_LINE,)
    for span in spans:
        below = Span(-math.inf, span.low, False, not span.low_closed)
        above = Span(span.high, math.inf, not span.high_closed, False)
        result = _intersect(result, (below, above))
    return result
