"""Checks that all commands share: numbers in their range, outputs that can be written and are no
inputs."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rea_core.options import NOT_NEGATIVE, POSITIVE, SHARE

Kind = type | tuple[type, ...]
NUMBER = (int, float)
SOCKET_FOLDER = 107 - len("/00000000-0000-0000-0000-000000000000")  # bytes


def check_numbers(
    values: Mapping[str, Any],
    *,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raise ValueError naming the key of a number that is out of its range.

    Args:
        values: arguments by key; missing ones, None (not given) and words (such as `auto`) are
            passed over.
        positive: keys whose number must be greater than 0.
        not_negative: keys whose number must be 0 or more.
        shares: keys whose number must be from 0 to 1.
    """
    for keys, rule in ((positive, POSITIVE), (not_negative, NOT_NEGATIVE), (shares, SHARE)):
        for key in keys:
            if isinstance(number := values.get(key), NUMBER) and not rule.holds(number):
                raise ValueError(f"{key} is {number}; it must be {rule.words}")


def check_finite(values: Mapping[str, Any]) -> None:
    """Raise ValueError naming the key of a number, or of a list or mapping, that is not finite."""
    for key, value in values.items():
        inside = value.values() if isinstance(value, Mapping) else value
        for number in inside if isinstance(value, (list, tuple, Mapping)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{key} is {value}; it must be a finite number")


def check_output(path: str | Path, key: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ValueError if a file cannot be written, or would take the place of one that is read.

    Args:
        path: file to be written; there may be an older one.
        key: argument that names it.
        inputs: files that are read or written as well; None are passed over.
    """
    path = Path(path)
    _check_link(path, key)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or pipe"
        raise ValueError(f"{key} is {path}, which is {kind}; name a file")
    # realpath takes a link that leads to itself, too
    others = {os.path.realpath(file) for file in inputs if file is not None}
    if os.path.realpath(path) in others:
        raise ValueError(
            f"{key} is {path}, which this command also reads or writes; name another file"
        )
    check_output_folder(path.parent, key)


def check_made(file: Path, card: Path, mark: str) -> None:
    """Raise ValueError if a file or its card, which may be itself, is there, and the card lacks the
    mark of the program that makes both."""
    is_own = card.is_file() and mark in card.read_text(encoding="utf-8", errors="replace")
    for path in (card, file):
        if path.exists() and path.stat().st_size and not is_own:
            raise made_by_others(path)


def made_by_others(path: Path) -> ValueError:
    """Error for a file that would be lost."""
    return ValueError(
        f"{path} is there, and is no earlier output of this command; delete it, or name another "
        "file"
    )


def check_output_folder(folder: str | Path, key: str) -> None:
    """Raise ValueError if a folder cannot be made, or may not be written to."""
    places = (Path(folder), *Path(folder).parents)
    for place in places:
        _check_link(place, key)
    existing = next(path for path in places if path.exists())
    if not existing.is_dir():
        raise ValueError(
            f"{key}: {existing} is a file where a folder is needed; give another place"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"{key}: {existing} may not be written to; give another place, or change its "
            "permissions"
        )


def _check_link(path: Path, key: str) -> None:
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"{key}: {path} is a link to {os.readlink(path)}, which does not exist; make that, or "
            "remove the link"
        )


def check_text(text: str, what: str) -> None:
    """Raise ValueError for a control character other than a line end, such as one backslash too
    few makes of a command of LaTeX."""
    if odd := odd_characters(text, "\n"):
        raise ValueError(
            f"{what} has the control character {odd[0]!r}; in JSON, and in double quotes of YAML, "
            "write each backslash twice"
        )


def odd_characters(text: str, allowed: str) -> list[str]:
    """Control characters of a text but for those that are allowed."""
    return [c for c in text if unicodedata.category(c) == "Cc" and c not in allowed]


# keys and flags whose values name a file, a folder or a model
PLACES = re.compile(
    r"(_dir|_file|_path|_name|^qaf|^lora|_model|^model|_tokenizer|_checkpoint|dataset)$"
)


def user_path(name: str) -> Path:
    """A path as users write it, see `user_name`."""
    return Path(user_name(name))


def user_name(name: str) -> str:
    """A path, or a Hub id, as users write it: `~` and variables are replaced. Raises ValueError for
    a variable that is not set, or a user who is unknown."""
    expanded = os.path.expandvars(os.path.expanduser(name))
    if expanded.startswith("~") or re.search(r"(^|/)\$", expanded):
        raise PathError(f"{name!r}: no such user, or the variable is not set; write the path out")
    return expanded


def expand_paths(part: Any) -> None:
    """Replace `~` and variables at the begin of values that name a place."""
    for key, value in vars(part).items():
        if PLACES.search(key) and isinstance(value, str) and value.startswith(("~", "$")):
            try:
                setattr(part, key, user_name(value))
            except ValueError as error:
                raise ValueError(f"{key} is {error}") from None


class PathError(ValueError, argparse.ArgumentTypeError):
    """A path that cannot be expanded; flags show its message, too."""


def check_sockets() -> None:
    """Raise ValueError if the name of the temporary folder is too long for vLLM's sockets."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > SOCKET_FOLDER:
        raise ValueError(
            f"TMPDIR is {folder}, of {len(os.fsencode(folder))} bytes, but a socket's folder has "
            f"at most {SOCKET_FOLDER}; set TMPDIR to a shorter one, such as /tmp"
        )


def is_path(name: str) -> bool:
    """Whether a name means something on the disk and not a Hub id.

    `model/X` is a folder wherever there is a folder `model`, and so are all names that are no
    `owner/name`.
    """
    path = Path(name)
    return (
        name.startswith((".", "/"))
        or len(path.parts) > 2
        or os.path.lexists(path)
        or Path(path.parts[0]).is_dir()
    )


def is_a(value: Any, kind: Kind) -> bool:
    """Whether a value of JSON is of a type; true and false are no numbers."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def short_json(value: Any) -> str:
    """Begin of a value, for a message."""
    return json.dumps(value, ensure_ascii=False)[:60]


def is_dialogue(value: Any) -> bool:
    """Whether a column holds chat messages."""
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in value
    )
