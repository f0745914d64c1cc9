"""Files as they are published: without places and addresses of the machine that made them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rea_core.json_text import read_json
from rea_core.row_files import Row, open_rows, write_json

# Their strings are vocabulary, and may look like anything.
VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json"}
MODEL = "answered_by"  # column of a generation file
LEFT_OUT = {"hub_token", "api_key", "api_base", "policy_server", "reflection_server"}
# `/home/me/model`, `~/model`, `../model`, `/home/me/own.py:right`; but not `/no_think`
_PLACE = re.compile(r"(?:(?:/[^/\s]+){2,}|(?:~|\.\.)(?:/[^/\s]+)+)/?")


def without_places(value: Any) -> Any:
    """A JSON value with the name of each absolute path in place of the path, and without keys of
    servers and tokens.

    >>> without_places({"model_dir": "/home/me/model/R1", "policy_server": "http://node7:8000/v1"})
    {'model_dir': 'R1'}
    """
    if isinstance(value, Mapping):
        return {k: without_places(v) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    return _without_place(value) if isinstance(value, str) else value


def _without_place(text: str) -> str:
    if _PLACE.fullmatch(text) or _exists(text):
        return Path(text).name
    for folder in (Path.cwd(), Path.home()):
        if folder != Path("/"):
            text = text.replace(f"{folder}/", "")
    return text


def _exists(text: str) -> bool:
    """Whether a text is the absolute path of something here, such as one with blanks in it."""
    may_be = text.startswith("/") and "\n" not in text and len(text) < 4096
    return may_be and Path(text).exists()


def public_file(path: Path, folder: Path, has_responses: bool = False) -> Path:
    """A file to publish: the same, or a copy of its name without places in a folder.

    Of a generation file, which `has_responses`, only the column that names its model is changed.
    """
    if has_responses:
        return _public_rows(path, folder / path.name)
    if path.suffix != ".json" or path.name in VOCABULARIES:
        return path
    found = read_json(path)
    if (public := without_places(found)) == found:
        return path
    write_json(folder / path.name, public)
    return folder / path.name


def _public_rows(path: Path, copy: Path) -> Path:
    def public(row: Row) -> Row:
        return row | {MODEL: without_places(row[MODEL])} if MODEL in row else row

    rows = open_rows(path)
    if all(public(row) == row for row in rows):
        return path
    write_json(copy, (public(row) for row in rows))
    return copy
