r"""A parser for answers in LaTeX, plain text and code: from a normalized text to tokens, and to a
node.

A token is a sign, a number, a letter or a command. A word has a quotation mark before it (`"cm`),
and what multiplies the number before it a `#`: `2.5 #1000000`, `3 #1/4`. A number is a `Fraction`,
a symbol a `str`, anything else a tuple of its kind and its parts:

    ("plus" | "times" | "power" | ...)      values; ("unit", name) is a factor
    ("list" | "any", value, ...)            several values: bare, with "or"
    ("tuple" | "set", value, ...)           in round brackets, in braces; a matrix has rows
    ("interval", low, high, "[", ")")       sets, which ("cup" | "cap" | "setminus", a, b) join
    ("builder", condition, head)            a set that is given by a condition
    ("relation", a, sign, b, sign, c ...)   equations and inequalities; ("congruence", a, b, m)
    ("cases", (value, condition), ...)
    ("call", name, argument)                a function of any name, or a product with brackets

Nothing is left over: a text with a part that is not understood is no node.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from importlib.resources import files
from itertools import product

from lark import Lark, Transformer, Tree
from lark.exceptions import LarkError

from generation.math_verify.tables import read_names, read_rules
from generation.math_verify.units import is_noun, is_unit

Node = Fraction | str | tuple

LOG_BASE = r"\base"  # of a logarithm without a base: ten, or e
MAX_SIGNS = 4  # plus-or-minus signs in one answer
EMPTY = r"\emptyset"
NUMBER_SETS = (r"\R", r"\Z", r"\N", EMPTY)
_PHRASES = read_names("phrases.txt", "|")
_KNOWN = {word for phrase in (*_PHRASES, "and or") for word in phrase.split()}


class ParseError(ValueError):
    """The text is no mathematics, or of a kind that is not understood."""


_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(
    rf"""\\text\{{(?P<text>[^{{}}]*)\}}
        | (?P<number>(?<![\d,])[1-9]\d{{0,2}}(?:,\d{{3}})+(?!,?\d)(?:\.\d+)?|{_NUMBER})
        | \\(?:begin|end)\s*\{{\w+\}} | \\[a-zA-Z]+ | \\. | (?P<word>[a-zA-Z]{{2,}})
        | (?:(?<=[\d}})i]\ )|(?<=\d)(?=s$))(?P<unit>[a-zA-Z])(?![a-zA-Z(]) | \S""",
    re.VERBOSE,
)


@lru_cache(maxsize=8192)
def tokenize(text: str, units: bool) -> str:
    """Tokens of a normalized text, with a blank between them, words as they are; `48,384` is one
    number.

    Args:
        text: Normalized answer.
        units: Whether `m` in `5 m`, and `mg`, are units rather than symbols.
    """
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match["text"] is not None:
            parts = re.findall(rf"[a-zA-Z]+|{_NUMBER}|\\.|[^\sa-zA-Z]", match["text"])
            tokens += [f'"{part}' if part.isalpha() else part for part in parts]
        elif match["word"] and not _is_word(token, units):
            tokens += token
        elif match["word"] or match["unit"] and units and is_unit(token):
            tokens.append(f'"{token}')
        else:
            tokens.append(token.replace(",", "") if match["number"] else token)
    return " ".join(tokens)


def _is_word(letters: str, units: bool) -> bool:
    """Whether a run of letters is a word, rather than the product of its letters."""
    if not units and len(letters) < 3:
        return letters in ("or", "no", "pi", "ln")
    long = len(letters) > (4 if letters.isupper() else 3)
    return long or letters.lower() in _KNOWN or is_unit(letters)


def _refuse(match: re.Match) -> str:
    raise ParseError(match[0])


_PHRASE = re.compile(
    "|".join(
        re.sub(r"\w+", r'"\g<0>', p) + r"(?!\S)" for p in sorted(_PHRASES, key=len, reverse=True)
    ),
    re.IGNORECASE,
)
_REWRITES = read_rules("tokens.txt", {"refuse()": _refuse})


def parse(tokens: str) -> Node:
    r"""Node of a whole answer. Raises `ParseError`.

    `\pm` stands for two values, each of which takes its own place in a list: `1\pm 2` is 3 and -1.
    Several are independent, `\mp` is the opposite of the others.
    """
    tokens = _PHRASE.sub(lambda match: _PHRASES[match[0].replace('"', "").lower()], tokens)
    for pattern, replacement in _REWRITES:
        tokens = pattern.sub(replacement, tokens)
    pieces = re.split(r"\\(pm|mp)(?!\S)", tokens)
    signs = pieces[1::2]
    if len(signs) > MAX_SIGNS:
        raise ParseError("too many signs")
    choices = list(product("+-", repeat=len(signs)))
    if "mp" in signs:
        choices = [tuple(sign[name == "mp"] for name in signs) for sign in ("+-", "-+")]
    try:
        nodes = [
            _GRAMMAR.parse("".join(map(str.__add__, pieces[::2], [*choice, ""])))
            for choice in choices
        ]
    except (LarkError, LookupError, TypeError, ValueError) as error:
        raise ParseError(str(error)) from error
    if len(nodes) == 1:
        return nodes[0]
    several = is_kind(nodes[0], "list", "any", "set")
    return (
        nodes[0][0] if several else "list",
        *dict.fromkeys(item for node in nodes for item in (node[1:] if several else [node])),
    )


def is_kind(node: Node, *kinds: str) -> bool:
    return isinstance(node, tuple) and node[0] in kinds


def items_of(node: Node) -> tuple[Node, ...]:
    return node[1:] if is_kind(node, "list", "any") else (node,)


def canonical(node: Node) -> str:
    """A text that is the same for sums and products in any order."""
    if not isinstance(node, tuple):
        return str(node)
    parts = [canonical(part) for part in node[1:]]
    return f"{node[0]}({','.join(sorted(parts) if is_kind(node, 'plus', 'times') else parts)})"


def substitute(node: Node, names: dict[str, Node]) -> Node:
    """The node with other symbols or values in place of some."""
    if isinstance(node, tuple):
        return tuple(substitute(part, names) for part in node)
    return names.get(node, node) if isinstance(node, str) else node


def _word(word: str) -> Node:
    name = word[1:]
    if not (is_unit(name) or is_noun(name)):
        raise ParseError(f"{name} is no unit")
    return ("unit", name)


def _group(opener: str, node: Node, closer: str) -> Node:
    items, pair = items_of(node), opener + closer
    if pair != "()" and len(items) == 2:
        return ("interval", *items, *pair)
    kind = {"()": "tuple", "[]": "list"}[pair]
    return (kind, *items) if len(items) > 1 else node


def _times(*factors: Node) -> Node:
    """A product; one with a vector or a matrix has its cells multiplied, and `P(1,2)` is a pair."""
    vector = next((factor for factor in factors if is_kind(factor, "tuple")), None)
    if vector is None:
        return ("times", *factors)
    if len(factors) == 2 and str(factors[0]).isupper():
        return vector
    others = [factor for factor in factors if factor is not vector]
    return (vector[0], *(_times(*others, item) for item in vector[1:]))


def _builder(head: Node, condition: Node) -> Node:
    r"""A set by its condition; `\{3k | k \in \Z\}` is a family of values."""
    *values, member = items_of(condition)
    whole = is_kind(member, "relation") and member[2] == r"\in" and member[3] in (r"\Z", r"\N")
    if whole and len(values) < 2:
        return ("where", values[0] if values else head, ((member[1], member[3]),))
    if is_kind(head, "relation"):  # {x in R | ...}
        return ("cap", head[3], ("builder", condition, head[1]))
    return ("builder", condition, head)


def _rows(begin: str, *rows: tuple) -> Node:
    """A matrix, values by cases, or a system; `rows` ends with the sign for the end."""
    *rows, _ = rows
    cells = [cell for row in rows for cell in row]
    if all(is_kind(cell, "relation") for cell in cells):
        return ("list", *cells)
    if "cases" in begin:
        return ("cases", *(row if len(row) == 2 else items_of(row[0]) for row in rows))
    column, *others = zip(*rows, strict=True)
    matrix = (Fraction(0), *(("tuple", *row) for row in rows))  # no tuple of points has a zero
    return ("tuple", *(matrix if others else column))


def _congruence(node: Node, modulus: Node) -> Node:
    """Of a symbol, or of what has no name: `2 (mod 5)`."""
    return ("congruence", *(node[1:4:2] if is_kind(node, "relation") else ("", node)), modulus)


_BUILDERS = {
    "word": _word,
    "marked": lambda node, mark: ("times", node, ("unit", str(mark))),
    "scripted": lambda *parts: canonical(("sub", *parts)),
    "group": _group,
    "minus": lambda node: _times(Fraction(-1), node) if is_kind(node, "tuple") else ("minus", node),
    "proportion": lambda first, *others: (
        "tuple",
        ":",
        *(("over", other, first) for other in others),
    ),
    "builder": _builder,
    "braces": lambda node: ("set", *node[1:]) if is_kind(node, "list") else node,
    "set": lambda node: ("set", *items_of(node)),
    "congruence": _congruence,
    "times": _times,
    "power": lambda base, exponent: (
        canonical(("sub", base, exponent)) if exponent == "'" else ("power", base, exponent)
    ),
    "function": lambda name, node: (name[1:], node),
    "extreme": lambda name, node: (name[1:], *node[1:]),
    "function_power": lambda name, exponent, node: ("power", (name[1:], node), exponent),
    "series": lambda name, start, last, body: (name[1:], start[3], last, body, start[1]),
    "row": lambda *cells: cells,
    "rows": _rows,
}


class _Nodes(Transformer):
    """Nodes of the grammar's rules; a rule without a builder is a kind of its own."""

    NAME = RELATION = FUNCTION = EXTREME = PRIME = str

    def NUMBER(self, token: str) -> Fraction:
        return sum(map(Fraction, token.lstrip("#").split("&")))

    def __default__(self, data: str, children: list, meta: object) -> Node | Tree:
        if data[0] == "_":  # repetitions
            return Tree(data, children)
        return _BUILDERS[data](*children) if data in _BUILDERS else (str(data), *children)


_GRAMMAR = Lark(
    (files(__package__) / "answer.lark").read_text(encoding="utf-8"),
    parser="lalr",
    transformer=_Nodes(),
)
