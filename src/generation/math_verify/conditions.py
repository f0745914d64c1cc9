"""Sets of numbers, and conditions on symbols: intervals, inequalities, equations, families of
values.

None of them is solved. Two are the same if they hold for the same values: at the ends that are
written, next to them, between them and far away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from generation.math_verify.numeric import (
    CONSTANTS,
    INDICES,
    MIN_POINTS,
    MP,
    NUM_POINTS,
    SPECIAL,
    TINY,
    Point,
    Value,
    close,
    evaluate,
    real_number,
    same_value,
    symbols,
    value_at,
)
from generation.math_verify.parsing import (
    EMPTY,
    NUMBER_SETS,
    Node,
    canonical,
    is_kind,
    items_of,
    substitute,
)

MEMBER = "m"  # symbol for the elements of a set
ZERO = Fraction(0)
NUM_DRAWS = 300
# sign -> orders of the two sides that fulfil it
ORDERS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "<>"}
NEAR = MP.mpf("1e-9")  # of an end of an interval, and of a value of a family
REACH, WIDE_REACH = (
    8,
    200,
)  # parameters of a family's values that are looked up among those of another


def is_set(node: Node) -> bool:
    """Whether a node is a set of numbers other than a list of them."""
    return node in NUMBER_SETS or is_kind(node, "interval", "cup", "cap", "setminus", "builder")


def is_condition(node: Node) -> bool:
    """Whether a node is an inequality or says that something is in a set, or a part of it does."""
    if is_kind(node, "relation"):
        member = node[2] == r"\in" and (is_set(node[3]) or is_kind(node[3], "tuple"))
        return member or bool({*node[2::2]} & {*ORDERS} - {"="})
    parts = node[1:] if is_kind(node, "list", "any") else ()
    return all(is_kind(part, "relation") for part in parts) and any(map(is_condition, parts))


def _membership(node: Node, member: Node) -> Node:
    """Condition for being in a set; a pair counts as an open interval."""
    if isinstance(node, str):
        whole, positive = ("congruence", member, ZERO, Fraction(1)), ("relation", ZERO, "<", member)
        # All of no conditions holds for every number, any of none for no number.
        known = {r"\R": ("list",), EMPTY: ("any",), r"\Z": whole, r"\N": ("list", whole, positive)}
        return known.get(node, ("relation", ZERO, "<", node))  # of an unknown set: true or false
    kind, *parts = node if isinstance(node, tuple) else ("set", node)
    if kind == "builder":
        return substitute(parts[0], {parts[1]: member})
    if kind in ("interval", "tuple"):
        # A pair has no ends of its own.
        low, high, *ends = (*parts, "(", ")")[:4]
        opener, closer = ("<" if end in "()" else r"\le" for end in ends)
        return ("relation", low, opener, member, closer, high)
    if kind == "set":
        return ("any", *(("relation", member, "=", part) for part in parts))
    kind = {"cup": "any", "cap": "list"}.get(kind, kind)
    return (kind, *(_membership(part, member) for part in parts))


def truth(node: Node, point: Point) -> bool:
    """Whether a condition holds at a point."""
    kind, *parts = node
    if kind == "relation":
        triples = zip(parts[::2], parts[1::2], parts[2::2], strict=False)
        return all(_holds(*triple, point) for triple in triples)
    if kind == "congruence":
        left, right, modulus = parts
        return MP.isint(evaluate(("over", ("plus", left, ("minus", right)), modulus), point))
    held = [truth(part, point) for part in parts]
    if kind == "setminus":
        return held == [True, False]
    return any(held) if kind == "any" else all(held)


def _holds(left: Node, sign: str, right: Node, point: Point) -> bool:
    if sign == r"\in":
        return truth(_membership(right, left), point)
    value, other = value_at(left, point), value_at(right, point)
    # complex numbers have no order
    if None in (value, other) or {MP.mpc} & {type(value), type(other)}:
        return False
    equal = value == other or MP.almosteq(value, other, 1e-25, TINY)
    return ("=" if equal else "<" if value < other else ">") in ORDERS.get(sign, "")


def same_condition(gold: Node, prediction: Node) -> bool:
    """Whether sets or conditions hold for the same values; free symbols must be the same."""
    pair = gold, prediction
    members = {node[1] for node in pair if is_kind(node, "relation") and node[2] == r"\in"}
    if any(map(is_condition, pair)):
        # `x > 2` next to `(2, oo)`: the symbol of the one stands for the members of the other.
        members = members or symbols(gold) ^ symbols(prediction)
    member = next(iter(members), MEMBER)
    conditions = [node if is_condition(node) else _membership(node, member) for node in pair]
    free = [symbols(node) for node in conditions]
    # Several symbols are drawn at random, which hits no edge: `<` and `\le` would look alike.
    closed = {len(re.findall(r"\\[lg]e", canonical(node))) for node in conditions}
    other = free[0] != free[1] and ("list",) not in conditions
    if len(members) > 1 or other or len(free[0]) > 1 < len(closed):
        return False
    points = _points(conditions, free[0] | free[1])
    columns = [[truth(node, point) for point in points] for node in conditions]
    # Conditions that hold nowhere tell nothing.
    return columns[0] == columns[1] and any(columns[0])


def _points(nodes: list[Node], free: set[str]) -> list[Point]:
    """Points that tell conditions apart: for one symbol next to all ends and far away."""
    if len(free) > 1:
        return [*map(Point, range(NUM_DRAWS))]
    ends = [value for node in nodes for value in _ends(node)]
    # |x| < 3 also ends at -3.
    values = [sign * end + shift for end in ends for sign in (1, -1) for shift in (0, NEAR, -NEAR)]
    values += [Fraction(half, 2) for half in (-1_000_000, *range(-41, 42), 1_000_000)]
    return [Point(known=dict.fromkeys(free, value)) for value in values]


def _ends(node: Node) -> Iterator[Value]:
    """Values of all parts that are finite real numbers."""
    value = None if isinstance(node, str) and node not in CONSTANTS else real_number(node)
    if value is not None and MP.isfinite(value):
        yield value
    elif isinstance(node, tuple):
        for part in node[1:]:
            yield from _ends(part)


def same_equation(gold: Node, prediction: Node) -> bool:
    """Whether equations differ by a constant factor, or by a symbol that is no solution.

    Several equations are their product.
    """
    left, right = _difference(gold), _difference(prediction)
    for name in (Fraction(1), *symbols(left)):
        for one, other in ((left, ("times", right, name)), (right, ("times", left, name))):
            points = (Point(index, real=True) for index in range(0, NUM_POINTS, 2))
            ratios = [value_at(("over", one, other), point) for point in points]
            known = [ratio for ratio in ratios if ratio is not None]
            same = len(known) >= MIN_POINTS and all(close(ratio, known[0]) for ratio in known)
            if same and known[0] and not same_value(substitute(one, {name: ZERO}), ZERO):
                return symbols(left) == symbols(right)
    return False


def _difference(node: Node) -> Node:
    if is_kind(node, "relation"):
        return ("plus", node[1], ("minus", node[3]))
    return ("times", *map(_difference, node[1:]))


def same_family(gold: Node, prediction: Node) -> bool:
    """Whether the values for all integers are the same: each is among those of the other."""
    for these, those in ((gold, prediction), (prediction, gold)):
        values, others = _values(these, REACH), _values(those, WIDE_REACH)
        found = [any(abs(value - other) < NEAR for other in others) for value in values]
        if not found or not all(found):
            return False
    return True


def _values(node: Node, reach: int) -> list[complex]:
    """Values of an expression, or of several, for integers up to `reach`.

    None unless it has one parameter, which is no constant.
    """
    if is_kind(node, "congruence") and isinstance(node[1], str):
        node = ("where", ("plus", node[2], ("times", node[3], node[1])), ((node[1], r"\Z"),))
    body, said = node[1:] if is_kind(node, "where") else (node, ())
    items = body[1:] if is_kind(body, "set") else items_of(body)
    heads = [item[3] if is_kind(item, "relation") and item[2] == "=" else item for item in items]
    sorts = dict(said) or dict.fromkeys(INDICES & set().union(*map(symbols, heads)), r"\Z")
    if len(sorts) != 1 or "constant" in sorts.values():
        return []
    numbers = range(1 if r"\N" in sorts.values() else -reach, reach + 1)
    points = [Point(known=dict.fromkeys(sorts, number)) for number in numbers]
    values = [value_at(head, point) for head in heads for point in points]
    return [complex(value) for value in values if value is not None]


# `numeric` evaluates it, but cannot import this file, which imports `numeric`.
SPECIAL["cases"] = lambda point, *cases: next(
    evaluate(value, point) for value, condition in cases if truth(condition, point)
)
