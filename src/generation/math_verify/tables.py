"""The tables of this package: text files with two columns, an arrow between them, and comments.

`␣` is a blank at the end of a column.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files

Function = Callable[[re.Match], str]


def read_table(name: str) -> list[tuple[str, str]]:
    """Pairs of a table, in its order."""
    text = (files(__package__) / name).read_text(encoding="utf-8").replace("␣", " ")
    return re.findall(r"^(?!# )(.*?)  ->(?:  (.*))?$", text, re.MULTILINE)


def read_names(name: str, separator: str | None = None) -> dict[str, str]:
    """What stands behind the arrow, for each of the names before it."""
    return {one: sign for names, sign in read_table(name) for one in names.split(separator)}


def read_rules(
    name: str, functions: dict[str, Function]
) -> list[tuple[re.Pattern[str], str | Function]]:
    """Substitutions of a table: patterns, and replacements or names of functions."""
    return [
        (
            re.compile(pattern, re.IGNORECASE * ('"' in pattern)),
            functions.get(value, re.sub(r"\\(?!\d|g<)", r"\\\\", value)),
        )
        for pattern, value in read_table(name)
    ]
