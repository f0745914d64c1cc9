"""What an answer says: `read` gives every reading that its notation allows, each a node (see
`parsing`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import product

from generation.math_verify.parsing import LOG_BASE, Node, ParseError, parse, substitute, tokenize
from generation.math_verify.tables import read_names

_CLOCK = re.compile(r"(?i)(\d{1,2})(?::([0-5]\d))?\s*([ap])\s*m|(\d{1,2}):([0-5]\d)")
_BASE = re.compile(
    r"""\(?(?P<digits>(?=[A-F]*\d)[0-9A-F]+)\)?\s*(?:
        # 52_8, 52_{(8)}, 52_{\text{eight}}
        _\s*\{?\s*\(?(?:\\text\{)?(?:base\s*\}?\s*)?(?P<index>\w+)\}?\)?\}?
        # 52 (base 8), 52 \text{base} 8
        | \(?(?:\\text\{)?\(?(?:in\ )?base(?:\ |\}\s*)(?P<name>\w+)[)}]*
    )""",
    re.VERBOSE,
)
# Options run from A to K in the benchmarks; I is the imaginary unit or a Roman one.
_LETTER = "[A-HJK]"
_LETTERS = re.compile(rf"(?:\(?{_LETTER}\)?[\s,;]*(?:and\s*)?)+")
_OPTION = re.compile(rf"(?:\(({_LETTER})\)|({_LETTER})(?:[.):]| -(?= [a-z]{{3}})))\s*(?=\S)(.*)")
_DATE = re.compile(
    r"(?i)(?=.*\d)[\w\s,.]*\b(?:jan|feb|mar|apr|may|june?|july?|aug|sep|oct|nov|dec)[a-z]*\b[\w\s,.]*"
)
_SORT = (
    '(?:\\ "?(?:real|positive|negative|nonnegative|arbitrary|natural|whole|fixed|nonzero|any|'
    "some|an?|constants?|integers?|numbers?|reals?|parameters?))"
)
_SYMBOL = r"(?:[a-zA-Z]|\\[a-z]+)"
_QUALIFIER = re.compile(
    rf"""(?=\ (?:[,;("].*(?:"|\\in\b|\\forall)|\\forall))(?!.*"some\ [xyzt]\b)
        (?:\ [,;])?(?:\ \()?(?:\ "(?:where|for|with|here))?
        (?P<all>\ "(?:all|any|every|each)|\ \\forall)?
        (?P<sort>{_SORT}*)\ (?P<names>{_SYMBOL}(?:\ ,\ {_SYMBOL})*)
        (?:\ \\in\ (?P<set>\\[RZN])|(?:\ "(?:is|are|being))?(?P<kind>{_SORT}+))?(?:\ \))?$""",
    re.VERBOSE,
)
_ONLY = re.compile(r'(?: "(?:is|are))? "the(?: "(?:only|unique))? "(?:solutions?|answers?)$')
# Words that leave the meaning of a short answer as it is, and words for numerals.
_FILLERS = "a an the is are it be of condition conditions answer only due".split()
LONG = 24  # letters of a text
_NUMERALS = read_names("numerals.txt")


@lru_cache(maxsize=8192)
def read(text: str) -> tuple[Node, ...]:
    """Read a normalized answer.

    `48,384` is a number and a list, `\\log` has two bases, `5 m` may be a product.
    """
    # Times, dates and words stand inside and outside of \text{}.
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    # Else 52_8 would also be a symbol with an index.
    if found := _read_base(text):
        return (found,)
    nodes = [
        *_read_letters(re.sub(r"\\text\{([^{}]*)\}|\\[{}]", r"\1", text)),
        *_read_clock(re.sub(r"[. ]+", " ", plain)),
    ]
    # A blank behind a comma makes it one of a list; before a 0 it separates thousands.
    listed = text if ",0" in text else text.replace(",", ", ")
    variants = dict.fromkeys(
        tokenize(*variant) for variant in product((text, listed), (True, False))
    )
    for tokens in variants:
        try:
            rest, sorts = _split_qualifiers(tokens)
            node = parse(rest)
        except (ParseError, RecursionError):
            continue
        node = ("where", node, sorts) if sorts else node
        nodes += [node, substitute(node, {LOG_BASE: "e"})]
    # Words: a date, or letters, perhaps with a short number behind them. Two small letters in a
    # row, or four letters, tell them from a product of symbols.
    if (
        _DATE.fullmatch(plain)
        or re.fullmatch(r"[A-Za-z][A-Za-z\s'.-]*\d{0,2}", plain)
        and re.search(r"[a-z]{2}|[A-Za-z]{4}|(?i:\b(?:yes|no)\b)", plain)
    ):
        nodes.append(("words", plain))
    # If nothing reads it, the tokens themselves are compared.
    return tuple(dict.fromkeys(nodes)) or (("text", next(iter(variants), "")),)


def _read_clock(text: str) -> tuple[Node, ...]:
    """Read a time; the hour alone is a number as well, with the unit "am" or "pm"."""
    match = _CLOCK.fullmatch(text.strip())
    if not match:
        return ()
    hour, minute = int(match[1] or match[4]), match[2] or match[5]
    # as written, or by the hour: 0 is am, over 12 is pm, others may be either
    half = (match[3] or "a"[hour:] or "p" * (hour > 12)).lower()
    clock = ("clock", f"{hour % 12}:{int(minute or 0)}", half)
    return (clock,) if minute else (clock, ("times", Fraction(hour), ("unit", half)))


def _read_base(text: str) -> Node | None:
    """Read digits with a base: `52_8` is forty-two."""
    match = _BASE.fullmatch(re.sub(r"\\text\{([0-9A-F]+)\}(?=_)", r"\1", text))
    if not match:
        return None
    name = match["index"] or match["name"]
    try:
        base = int(name) if name.isdecimal() else parse(f'"{name}')
        return Fraction(int(match["digits"], int(base)))
    except (ValueError, TypeError):  # ParseError is one
        return ("text", text)


def _read_letters(text: str) -> tuple[Node, ...]:
    """Read options, or one option with the text that stands behind it."""
    if _LETTERS.fullmatch(text):
        return (("options", *sorted({*re.findall(_LETTER, text)})),)
    match = _OPTION.fullmatch(text)
    return (("options", match[1] or match[2]), *read(match[3])) if match else ()


def _split_qualifiers(tokens: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    r"""Split off what is said about symbols at the end: `, k \in \Z`, "where c is a constant".

    Returns the rest, and for each symbol its sort: `\Z`, `\N` or "constant". "For all x" says
    nothing.
    """
    tokens, sorts = _ONLY.sub("", tokens), {}
    # The pattern ends at the end of the text, so the last qualifier goes first.
    while match := _QUALIFIER.search(tokens):
        said = f"{match['sort']} {match['set']} {match['kind']}"
        tokens = tokens[: match.start()]
        whole = re.search(r"integer|natural|\\[ZN]", said)
        positive = re.search(r"positive|natural|\\N", said)
        # `for all x` says nothing, but `for all integers k` does.
        if whole or not match["all"] or "constant" in said:
            sort = "constant" if not whole else r"\N" if positive else r"\Z"
            sorts |= dict.fromkeys(match["names"].split(" , "), sort)
    return tokens, tuple(sorts.items())


def _words(text: str) -> list[str]:
    """Words without fillers, numerals last: the same for "Quadrant I" and "the first quadrant"."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # a gold that lost its blank: QuadrantI
    words = [_NUMERALS.get(word, word) for word in re.findall(r"[^\W_]+", text.lower())]
    words = [
        re.sub(r"^(\d+)(?:st|nd|rd|th)$", r"\1", word) for word in words if word not in _FILLERS
    ]
    return sorted(words, key=str.isdigit)


def same_words(gold: str, prediction: str) -> bool:
    """Equal up to case, fillers and numerals; a long text may have lost its blanks."""
    pair = ["".join(_words(text)) for text in (gold, prediction)]
    if max(map(len, pair)) > LONG:
        pair = [re.sub("|".join(_FILLERS), "", text) for text in pair]
    return pair[0] == pair[1]
