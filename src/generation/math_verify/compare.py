"""Whether two answers are the same value."""

from __future__ import annotations

import re
from itertools import product

from generation.math_verify.conditions import (
    is_condition,
    is_set,
    same_condition,
    same_equation,
    same_family,
)
from generation.math_verify.extract import MAX_LENGTH
from generation.math_verify.normalize import normalize
from generation.math_verify.numeric import (
    CONSTANTS,
    MP,
    real_number,
    same_value,
    symbols,
    without_units,
)
from generation.math_verify.parsing import Node, canonical, is_kind, items_of, substitute
from generation.math_verify.reading import read, same_words

SEVERAL = ("list", "any", "tuple", "set")
TEXTS = ("clock", "options", "words", "text")
COORDINATES = {"x", "y", "z"}


def equivalent(gold: str, prediction: str) -> bool:
    """Compare one gold with one prediction, without a bound on time: for use inside a worker."""
    if max(len(gold), len(prediction)) > MAX_LENGTH:
        return False
    gold, prediction = normalize(gold), normalize(prediction)
    if not gold or not prediction or gold == prediction:
        return gold == prediction != ""
    if re.fullmatch(r"-?\d+\.\d+", gold):  # a comma may be the decimal point of other languages
        prediction = re.sub(r"^(-?\d+),(?!\d{3}$)(?=\d+$)", r"\1.", prediction)
    readings = read(gold), read(prediction)
    if all(is_kind(nodes[0], *TEXTS) for nodes in readings):  # a time is no ratio
        readings = [nodes[:1] for nodes in readings]
    if re.search("[a-z].*[-+].*[a-z]", gold) and gold.upper().replace(" ", "") == prediction:
        return True  # P-Q for p-q
    try:
        equal = any(same(*pair, whole=True) for pair in product(*readings))
        return equal or _rounds_to(readings[1], gold)
    except RecursionError:  # too many brackets within each other
        return False


def same(gold: Node, prediction: Node, whole: bool = False) -> bool:
    """Compare two readings; what differs in kind differs, but for a few kinds with one meaning.

    Args:
        gold: What the problem's answer says; it decides if a rule has a direction.
        prediction: What a model's answer says.
        whole: Whether these are whole answers rather than parts of them.
    """
    if gold == prediction:
        return True
    gold, prediction = pair = _spread(gold), _spread(prediction)
    if any(is_kind(node, "where", "congruence") for node in pair):
        return _same_where(*pair)
    if any(is_condition(node) or is_set(node) for node in pair):
        numbers = all(
            is_condition(n) or is_set(n) or is_kind(n, "set") or is_kind(n, "tuple") and len(n) == 3
            for n in pair
        )
        return numbers and same_condition(*pair)
    if (
        is_kind(gold, "any")
        and not is_kind(prediction, *SEVERAL)
        and any(same(item, prediction) for item in gold[1:])
    ):
        return True  # "2 or -2" as gold means that either is right
    if whole:
        pair = [*map(_only, pair)]
    if any(is_kind(node, "relation") for node in pair):
        return _same_relation(*pair)
    several = [is_kind(node, *SEVERAL) for node in pair]
    if any(several):
        return all(several) and _same_items(*pair)
    if any(is_kind(node, *TEXTS) for node in pair):
        return _same_text(*pair)
    return _same_quantity(*pair)


def _spread(node: Node) -> Node:
    """Bring several values to one form: `(m,n)=(3,8)` is two equations, `x=2,x=3` is two values."""
    match node:
        case ("relation", ("tuple", *names), "=", ("tuple", *values)) if len(names) == len(values):
            pairs = zip(names, values, strict=True)
            return ("list", *(("relation", name, "=", value) for name, value in pairs))
    assigned = [_assignment(item) for item in node[1:]] if is_kind(node, "list", "any") else [None]
    if all(assigned):
        names = {re.sub(r"sub\((.*),\d+\)", r"\1", canonical(name)) for name, _ in assigned}
        return ("set", *(value for _, value in assigned)) if len(names) == 1 else node
    return node


def _is_name(node: Node) -> bool:
    """Whether one side of an equation only names the other: `x`, `f(x)`, `AB`, `|z|`, `(x,y)`."""
    points = is_kind(node, "times", "sin", "cos", "tan") and all(
        isinstance(part, str) and part.isupper() for part in node[1:]
    )
    several = is_kind(node, "tuple", "fabs", "over") and all(map(_is_name, node[1:]))
    function = is_kind(node, "call") and not is_kind(node[2], "plus", "times", "power")
    return several or points or function or isinstance(node, str) and node not in CONSTANTS


def _assignment(node: Node) -> tuple[Node, Node] | None:
    """Name and value, where an equation only names a value."""
    if not is_kind(node, "relation") or not {*node[2::2]} <= {"=", r"\in"}:
        return None
    sides = node[1], node[-1]
    left, right = sides if _is_name(node[1]) or node[2] != "=" else sides[::-1]
    return (left, right) if _is_name(left) else None


def _claimed(node: tuple) -> Node | None:
    """Value that an equation claims for its left side: `4!=24`, `m+n=7`, `f(2)=3`.

    None if it holds for some values only.
    """
    if assignment := _assignment(node):
        return assignment[1]
    left, right = node[1], node[-1]
    if {*node[2::2]} != {"="} or symbols(right):
        return None
    if not symbols(left):
        return right if all(same_value(left, other) for other in node[3::2]) else None
    curved = re.search(r"power|root|fabs|times\([^\d)]", canonical(left))
    return right if is_kind(left, "plus") and not curved and real_number(right) else None


def _same_relation(gold: Node, prediction: Node) -> bool:
    named, other = _assignment(gold), _assignment(prediction)
    for equation, values in ((gold, prediction), (prediction, gold)):
        free = symbols(equation)
        if is_kind(values, *SEVERAL) and not _assignment(equation) and len(free) == 1:
            solutions = (("relation", *free, "=", value) for value in values[1:])  # of x^2=4
            return same_equation(equation, ("list", *solutions))
    if not is_kind(gold, "relation"):
        value = _claimed(prediction)
        return value is not None and same(gold, value)
    if not is_kind(prediction, "relation"):
        total = (
            is_kind(gold[1], "plus")
            and all(map(_is_name, gold[1][1:]))
            and not COORDINATES & symbols(gold[1])
        )
        return bool(named or total) and same(named[1] if named else gold[-1], prediction)
    if named and other:
        names = [canonical(name) for name, _ in (named, other)]
        functions = [re.fullmatch(r"(?:call|sub)\((.*),([a-z])\)", name) for name in names]
        bases = [found[1] if found else name for found, name in zip(functions, names, strict=True)]
        if bases[0] == bases[1] or "y" in bases and None in functions and any(functions):
            # f(t) = 2t is f(x) = 2x, and y = 2x draws it
            letters = [found[2] for found in functions if found]
            renamed = dict(zip(letters, letters[::-1], strict=True))
            return same(named[1], substitute(other[1], renamed))
    return {*gold[2::2], *prediction[2::2]} == {"="} and same_equation(gold, prediction)


def _same_items(gold: tuple, prediction: tuple) -> bool:
    """Compare by items: tuples have an order, sets and lists have none.

    A bare list next to a tuple or to equations has one too.
    """
    kinds = {gold[0], prediction[0]}
    golds, predictions = (
        _distinct(node[1:]) if "set" in kinds else [*node[1:]] for node in (gold, prediction)
    )
    named = [any(is_kind(item, "relation") for item in node[1:]) for node in (gold, prediction)]
    ordered = "tuple" in kinds or named[0] != named[1]
    if len(golds) != len(predictions) or ordered and "set" in kinds:
        return False
    if ordered:
        return all(map(same, golds, predictions))
    for item in golds:
        match = next((other for other in predictions if same(item, other)), None)
        if match is None:
            return False
        predictions.remove(match)
    return True


def _distinct(items: tuple) -> list:
    return [
        item
        for place, item in enumerate(items)
        if not any(same(item, other) for other in items[:place])
    ]


def _only(node: Node) -> Node:
    """The element of a set with one: {-2} and -2 are one solution."""
    match node:
        case ("set", item) if not is_kind(item, "set") and not is_set(item):
            return item
    return node


def _same_where(gold: Node, prediction: Node) -> bool:
    """Compare what has a parameter: as it is, as a family, with another letter for a constant."""
    pair = gold, prediction
    bodies = [node[1] if is_kind(node, "where") else node for node in pair]
    said = [dict(node[2]) if is_kind(node, "where") else {} for node in pair]
    if any(said) and not (all(said) and said[0] != said[1]) and same(*bodies):
        return True
    heads = [
        {item[1] for item in items_of(body) if is_kind(item, "relation", "congruence")}
        for body in bodies
    ]
    # Of one name; `even` has none, but is not just a value.
    named = heads[0] == heads[1] or ("" in heads[0] | heads[1]) == all(heads)
    if named and same_family(*pair):
        return True
    left, right = map(symbols, bodies)
    extra, other = sorted(left - right), sorted(right - left)
    renamed = len(extra) == len(other) > 0 and (
        {*extra} <= said[0].keys() or {*other} <= said[1].keys()
    )
    return renamed and same(bodies[0], substitute(bodies[1], dict(zip(other, extra, strict=True))))


def _same_quantity(gold: Node, prediction: Node) -> bool:
    """Compare in one unit; a unit that only one side has was left out by the other."""
    if same_value(gold, prediction):
        return True
    units = [{*re.findall(r"unit\((\S*?)\)", canonical(node))} for node in (gold, prediction)]
    if bool(units[0]) == bool(units[1]) or units[1] == {"%"} and abs(real_number(gold) or 0) <= 1:
        return False  # 34 may be 34% without its sign, but 0.34 is not 0.34%
    return same_value(without_units(gold), without_units(prediction))


def _rounds_to(readings: tuple[Node, ...], decimal: str) -> bool:
    """Whether a decimal gold is the rounded value of a prediction: 5.48 of the root of 30.

    Only values that no decimal equals are rounded, to three digits at least. That is all the
    tolerance there is: a decimal that differs from the gold is another number.
    """
    if not re.fullmatch(r"(?=-?\d*\.\d)-?[0.]*[1-9](?:\.?\d){2,}", decimal):
        return False
    half_unit = MP.mpf(10) ** -len(decimal.partition(".")[2]) / 2
    return any(
        value is not None
        and abs(MP.sinpi(value * 10**20)) > 1e-9
        and abs(value - MP.mpf(decimal)) <= half_unit
        for value in map(real_number, readings)
    )


def _same_text(gold: Node, prediction: Node) -> bool:
    if is_kind(gold, "options") or not is_kind(gold, *TEXTS) or not is_kind(prediction, gold[0]):
        return isinstance(prediction, str) and gold == ("options", prediction.upper())
    return (
        same_words(gold[1], prediction[1])
        if gold[0] == "words"
        else gold[1] == prediction[1] and "" in gold + prediction
    )
