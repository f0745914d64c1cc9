"""What an answer says: `read` gives every reading that its notation allows."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import product

from generation.math_verify.region import NAME, read_region
from generation.math_verify.splitting import inside, split_top
from generation.math_verify.units import parse_unit, split_unit
from generation.math_verify.values import Group, Letters, Matrix, Quantity, Readings, Relation, Words
from generation.math_verify.words import number_from_words

_SEPARATOR = re.compile(r"\s*(?:,?\s*(?<![a-zA-Z\\])(?i:and|or)(?![a-z])|[,;])\s*")
_OR = re.compile(r"\s*(?<![a-zA-Z\\])(?i:or)(?![a-z])\s*")
_RELATION = re.compile(r"\s*(?:[<>=]|\\(?:le|ge|ne|approx|in)(?![a-zA-Z]))\s*")
_COLON = re.compile(r"\s*:\s*")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_CLOCK = re.compile(r"(?i)(\d{1,2})(?::([0-5]\d))?\s*(?:\\text\{)?\s*([ap])\.?\s*m\.?\}?|(\d{1,2}):([0-5]\d)")
_BASE = re.compile(
    r"""\(?(?P<digits>[0-9A-F]+)\)?\s*(?:
        _\s*\{?\s*\(?(?:\\text\{)?(?:base\s*\}?\s*)?(?P<index>\w+)\}?\)?\}?   # 52_8, 52_{(8)}, 52_{\text{eight}}
        | \(?(?:\\text\{)?\(?(?:in\ )?base(?:\ |\}\s*)(?P<name>\w+)[)}]*      # 52 (base 8), 52 \text{base} 8
    )""",
    re.VERBOSE,
)
_LETTER = "[A-HJK]"  # options run from A to K in the benchmarks; I is the imaginary unit or a Roman one
_LETTERS = re.compile(rf"(?:\(?{_LETTER}\)?[\s,;]*(?:and\s*)?)+")
_OPTION = re.compile(rf"(?:\(({_LETTER})\)|({_LETTER})[.):])\s*(?=\S)(.*)")
_NAMED_PAIR = re.compile(r"[A-Z]'?\s*(\([^()]*,[^()]*\))|[a-z]\s*(?=\[|.*\]$)([(\[][^()\[\]]*,[^()\[\]]*[)\]])")
_MATRIX = re.compile(r"(.*?)\\begin\{pmatrix\}((?:(?!\\begin).)*)\\end\{pmatrix\}(\^\{?\s*(?:T|\\top)\s*\}?)?")
_MULTIPLES = re.compile(r"\\\{(\w)\|\1=([^,]*),")
_SYMBOL = rf"(?:[A-Z]{{1,4}}|\{{[A-Z]+\}}|\\text\{{\w\}}|{NAME})"
_IDENTIFIER = rf"(?:\\(?:angle|triangle|vec|overline)\s*)?{_SYMBOL}(?:_\{{.*?\}}|_\w|')*"
_LEFT_SIDE = re.compile(
    rf"""(?P<name>{_IDENTIFIER})(?:\s*\(\s*(?P<variable>[a-zA-Z])\s*\))?
        | \|\s*{_IDENTIFIER}\s*\| | \(?{_IDENTIFIER}(?:\s*,\s*{_IDENTIFIER})+\)?""",
    re.VERBOSE,
)


@lru_cache(maxsize=8192)
def read(text: str) -> Readings:
    """Read a normalized answer. `48,384` is a number and a list, `(2,4)` a pair and an interval."""
    found: Readings = ()
    for reader in _READERS:
        if found := reader(text):
            break
    return _read_letters(text) + found


def _read_wrapped(text: str) -> Readings:
    r"""Unwrap brackets around one thing, `\text{}` around the whole, and the name before a point or an interval."""
    if body := inside(text, r"\text{", "}"):
        return read(body.rstrip(" .,"))
    if (body := inside(text, "(", ")") or inside(text, "{", "}")) and len(split_top(body, _SEPARATOR)) == 1:
        return read(body)
    match = _NAMED_PAIR.fullmatch(text)
    return read(match[1] or match[2]) if match else ()


def _read_clock(text: str) -> Readings:
    """Read a time as hour and minute; "am" or "pm" is the hour's unit, which may be left out like any other."""
    match = _CLOCK.fullmatch(text)
    if not match:
        return ()
    hour, minute, half = match[1] or match[4], match[2] or match[5], match[3]
    unit = parse_unit(f"{half.lower()}m") if half else parse_unit("pm") if int(hour) > 12 else None
    clock = Group("tuple", ((Quantity(str(int(hour) % 12), unit),), (Quantity(str(int(minute or 0))),)))
    return (clock,) if minute else (clock, Quantity(hour, unit))


def _read_ratio(text: str) -> Readings:
    """Read `2:3` as the fraction and `3:5:7` as the tuple of ratios to the first."""
    first, *others = split_top(text, _COLON)
    if not first or not others or not all(others) or re.search(r"\\[{}]", text):
        return ()
    if len(others) == 1:
        return (Quantity(rf"\frac{{{first}}}{{{others[0]}}}"),)
    return (Group("tuple", tuple(read(rf"\frac{{{other}}}{{{first}}}") for other in others)),)


def _read_base(text: str) -> Readings:
    """Read digits with a base: `52_8` is forty-two."""
    match = _BASE.fullmatch(text)
    if not match:
        return ()
    name = match["index"] or match["name"]
    base = int(name) if name.isdecimal() else (number_from_words(name) or (0, ""))[0]
    digits = [int(digit, 16) for digit in match["digits"]]
    if not max(1, *digits) < base <= 36:
        return (Words(text),)
    return (Quantity(str(sum(digit * base**place for place, digit in enumerate(reversed(digits))))),)


def _read_letters(text: str) -> Readings:
    """Read options, or one option with the text that stands behind it."""
    text = re.sub(r"\\text\{([^{}]*)\}|\\[{}]", r"\1", text)
    if _LETTERS.fullmatch(text):
        return (Letters(frozenset(re.findall(_LETTER, text))),)
    match = _OPTION.fullmatch(text)
    return (Letters(frozenset(match[1] or match[2])), *read(match[3])) if match else ()


def _read_matrix(text: str) -> Readings:
    """Read a matrix, transposed or with a factor before it; a column is also the tuple of its entries."""
    for pair in ("()", "[]"):
        text = inside(text, *pair) or text
    match = _MATRIX.fullmatch(text)
    factor = match[1].strip() if match else "="
    if not match or not re.fullmatch(r"|-|.*[\d\w})]", factor):
        return ()
    factor = factor if factor in ("", "-") else rf"({factor})\cdot "
    rows = [tuple(cell.strip() for cell in row.split("&")) for row in match[2].split(r"\\") if row.strip()]
    if len({len(row) for row in rows}) != 1:
        return ()
    rows = [tuple(f"{factor}({cell})" if factor else cell for cell in row) for row in rows]
    rows = list(zip(*rows, strict=True)) if match[3] else rows
    column = (Group("tuple", tuple(read(row[0]) for row in rows)),) if len(rows[0]) == 1 else ()
    return (Matrix(tuple(rows)), *column)


def _read_thousands(text: str) -> Readings:
    """Read `58,500` as a number; as a list as well unless it has a unit or an item would start with zero."""
    value, unit, _ = split_unit(text)
    if not _THOUSANDS.fullmatch(value):
        return ()
    number = Quantity(value.replace(",", ""), unit)
    return (number,) if unit or ",0" in value else (number, *_read_group(text))


def _read_region(text: str) -> Readings:
    region = read_region(text)
    if region is None:
        return ()
    return (region, *_read_group(text)) if text.startswith("(") else (region,)


def _read_group(text: str) -> Readings:
    r"""Read sets, tuples and lists; `\pm` stands for two values, each of which takes its own place in a list."""
    if body := inside(text, r"\{", r"\}"):
        if "|" in body or ":" in body:  # given by a condition; \{x|x=3k,...\} is \{3k|...\}
            return (Quantity(_MULTIPLES.sub(r"\\{\2|", text.replace(" ", "").replace(":", "|"))),)
        return _group("set", [variant for part in split_top(body, _SEPARATOR) for variant in _signs(part)])
    parts = [variant for part in split_top(text, _SEPARATOR) for variant in _signs(part)]
    if len(parts) > 1:
        return _group("any" if len(split_top(text, _OR)) > 1 else "list", parts)
    for kind, pair, least in (("tuple", "()", 2), ("set", "{}", 2), ("list", "[]", 3)):  # [2,4] is an interval only
        parts = split_top(inside(text, *pair) or "", _SEPARATOR)
        if len(parts) >= least:
            return _group(kind, parts)
    return ()


def _group(kind: str, parts: list[str]) -> Readings:
    return (Group(kind, tuple(map(read, parts))),) if all(parts) else ()


def _signs(text: str) -> list[str]:
    r"""Write `1\pm 2` as `1+2` and `1-2`; several `\pm` are independent, a `\mp` is the opposite of the others."""
    pieces = re.split(r"\\(pm|mp)(?![a-zA-Z])\s*", text)
    signs = pieces[1::2]
    if not 1 <= len(signs) <= 4:
        return [text]
    if "mp" in signs:
        choices = [["+-"[sign == "mp"] for sign in signs], ["-+"[sign == "mp"] for sign in signs]]
    else:
        choices = [list(choice) for choice in product("+-", repeat=len(signs))]
    joined = ["".join(map(str.__add__, pieces[::2], [*choice, ""])) for choice in choices]
    return [re.sub(r"(^|[(\[{,=])\s*\+", r"\1", text) for text in joined]


def _read_relation(text: str) -> Readings:
    """Read equations (of a chain the first and last side) and inequalities that are no region."""
    tokens = split_top(text, _RELATION, keep=True)
    if len(tokens) == 1 or not all(tokens):
        return ()
    left, right, signs = tokens[0], tokens[-1], set(tokens[1::2])
    if r"\approx" in signs:  # what stands before it is exact, unless it is just a name
        exact = text[: text.index(r"\approx")].strip()
        return read(f"{exact}={right}" if _LEFT_SIDE.fullmatch(exact) else exact)
    if signs <= {"=", r"\in"}:
        return _read_equation(left, right, member=r"\in" in signs)
    if len(tokens) > 3:
        return ()
    if tokens[1] in (">", r"\ge"):
        left, right = right, left
    return (Relation(left, {">": "<", r"\ge": r"\le"}.get(tokens[1], tokens[1]), right),)


def _read_equation(left: str, right: str, member: bool) -> Readings:
    if _LEFT_SIDE.fullmatch(right) and not _LEFT_SIDE.fullmatch(left) and not member:
        left, right = right, left
    match = _LEFT_SIDE.fullmatch(left)
    if match is None:
        return () if member else (Relation(left, "=", right),)
    return (Relation(left, "=", right, match["name"] or left, match["variable"]),)


def _read_number_words(text: str) -> Readings:
    found = number_from_words(text) if re.fullmatch(r"[A-Za-z\s-]+", text) else None
    if found is None:
        return ()
    number, rest = found
    return (Quantity(str(number), parse_unit(rest) if rest else None), Words(text))


def _read_words(text: str) -> Readings:
    """Read letters without mathematics as words; short ones could be products, such as `ab`."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    if not re.fullmatch(r"[A-Za-z][A-Za-z\s'.-]*\d{0,2}", plain) or not re.search(r"[A-Za-z]{2}", plain):
        return ()
    short = all(len(word) <= 3 for word in re.findall("[A-Za-z]+", plain))
    return (Words(plain), Quantity(text)) if short else (Words(plain),)


def _read_quantity(text: str) -> Readings:
    latex, unit, sure = split_unit(text)
    if unit is None:
        return (Quantity(text),)
    return (Quantity(latex, unit),) if sure else (Quantity(text), Quantity(latex, unit, sure=False))


_READERS: tuple[Callable[[str], Readings], ...] = (
    _read_clock,
    _read_base,
    _read_number_words,
    _read_matrix,
    _read_wrapped,
    _read_thousands,
    _read_region,
    _read_group,
    _read_relation,
    _read_ratio,
    _read_words,
    _read_quantity,
)
