r"""Bring the many spellings of one answer to one. `normalize` is applied to golds and predictions
alike.

Only notation changes here, never a value; what the notation means is decided in `parsing` and
`reading`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from generation.math_verify.extract import extract_answer
from generation.math_verify.tables import read_names, read_rules, read_table

_SIGNS = dict(read_table("signs.txt"))
_COMMANDS = read_names("commands.txt")


def _command(match: re.Match) -> str:
    r"""One command in its usual name, without letters that were glued to it: `\leqx` is `\le x`."""
    name = match[1]
    cut = next((cut for cut in range(len(name), 1, -1) if name[:cut] in _COMMANDS), len(name))
    sign, glued = _COMMANDS.get(name[:cut], "SELF"), name[cut:]
    return (match[0][: cut + 1] + " " * bool(glued) if sign == "SELF" else sign) + glued


def _repeating(match: re.Match) -> str:
    """A repeating decimal as a fraction: the digits of one period over as many nines."""
    whole, fixed, period = match.groups()
    numerator = int(whole + fixed + period) - int(whole + fixed)
    return rf"\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


_RULES = read_rules("notation.txt", {"command()": _command, "repeating()": _repeating})
_CHARACTER = re.compile("|".join(sorted(_SIGNS, key=len, reverse=True)) + r"|[^\x00-\x7f]")


def _sign(match: re.Match) -> str:
    """A character beyond ASCII in LaTeX, and digits of any script."""
    char = match[0]
    return (
        f" {_SIGNS[char]} "
        if char in _SIGNS
        else str(int(char))
        if char.isdecimal()
        else unicodedata.normalize("NFKC", char)
    )


@lru_cache(maxsize=8192)
def normalize(text: str) -> str:
    """Return the answer in one notation; the empty string if there is none, as in an open box."""
    text = _CHARACTER.sub(_sign, text)
    if r"\boxed" in text:
        text = extract_answer(text) or ""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.strip(" ").rstrip(" .,;:\\")
