"""Brackets of an answer, and cutting it at separators that stand outside of them."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "([{", ")]}"


def nesting(text: str) -> int:
    """Largest number of brackets that are open at once."""
    depth = deepest = 0
    for char in text:
        depth += (char in _OPEN) - (char in _CLOSE)
        deepest = max(deepest, depth)
    return deepest


def split_top(text: str, separator: re.Pattern[str], keep: bool = False) -> list[str]:
    """Split at matches of `separator` outside of brackets; with `keep` the separators stay, at odd places.

    Brackets of all types are alike, so that `[2,3)` is balanced.
    """
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        match = separator.match(text, index) if depth == 0 else None
        if match and match.end() > index:
            parts.append(text[start:index].strip())
            parts += [match.group().strip()] if keep else []
            start = index = match.end()
            continue
        depth += (text[index] in _OPEN) - (text[index] in _CLOSE)
        index += 1
    return [*parts, text[start:].strip()]


def inside(text: str, opener: str, closer: str) -> str | None:
    """Content of the bracket pair that encloses the whole text, None if there is no such pair."""
    if not (text.startswith(opener) and text.endswith(closer) and len(text) >= len(opener) + len(closer)):
        return None
    depth = 0
    for index, char in enumerate(text):
        depth += (char in _OPEN) - (char in _CLOSE)
        if depth <= 0 and index >= len(opener) - 1 and index < len(text) - 1:
            return None
    return text[len(opener) : -len(closer)].strip() if depth == 0 else None
