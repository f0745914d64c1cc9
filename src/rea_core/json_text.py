"""JSON text: read with errors that name the file, and the line and column or the row of a
mistake."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, cast


def read_text(path: str | Path) -> str:
    """Text of a file, without a byte order mark, and with newlines for all ends of lines.

    Raises ValueError naming the file, and the line that is not UTF-8.
    """
    with open_text(Path(path)) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise not_utf8(path, data.count(b"\n", 0, error.start) + 1, error.reason) from None


def open_text(path: Path, buffering: int = -1) -> BufferedReader:
    """Bytes of a file of text. Raises ValueError if it cannot be read, or is not UTF-8."""
    try:
        file = cast(BufferedReader, path.open("rb", buffering=buffering))
        begin = file.peek(64)[:64]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; make it first, or correct the name") from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); give a file that can"
        ) from None
    if wide := wide_encoding(begin):
        file.close()
        raise not_utf8(path, 1, f"it is {wide}")
    return file


def not_utf8(path: str | Path, line: int, reason: str) -> ValueError:
    """Error of a file in another encoding."""
    return ValueError(f"{path}, line {line}: not UTF-8 ({reason}); save the file as UTF-8")


def wide_encoding(data: bytes) -> str | None:
    """Name of an encoding with two or four bytes a letter, also without a mark; None for others."""
    name = json.detect_encoding(data)[: len("utf-16")].upper()
    return name if name in ("UTF-16", "UTF-32") else None


def read_json(path: str | Path, finite: bool = False) -> Any:
    """Content of a JSON file.

    Args:
        path: file.
        finite: refuse NaN and infinities, which Python's JSON knows; configurations of models have
            some.

    Raises ValueError naming the file, and the line and column, or the row, of a mistake.
    """
    if not (text := read_text(path)).strip():
        raise ValueError(f"{path} is empty; make the file again")
    return parse_json(text, path, finite=finite)


def parse_json(text: str, path: str | Path, line: int | None = None, finite: bool = False) -> Any:
    """Value of a JSON text: of a whole file, or of one line of it, counted from 1."""
    numbers: dict[str, Any] = {}
    if finite:
        numbers = {"parse_constant": no_number, "parse_float": finite_number}
    try:
        return json.loads(text, **numbers)
    except json.JSONDecodeError as error:
        place = f"line {(line or 1) + error.lineno - 1}, column {error.colno}"
        raise ValueError(
            f"{path}, {place}: not JSON ({error.msg}); mend that place, or make the file again"
        ) from None
    except RecursionError:
        raise too_deep(path) from None
    except ValueError:  # a number that none is, or with more digits than Python reads
        place = _place_of_number(text, line, finite)
        raise ValueError(f"{path}: {place}; write a number, a text or null") from None


def too_deep(path: str | Path) -> ValueError:
    """Error of a file whose values Python cannot read."""
    return ValueError(f"{path}: lists or objects in each other, hundreds deep; make the file again")


_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def check_characters(value: Any, text: str, place: str) -> None:
    """Raise ValueError for a value with half a character in one of its texts (an escape of a
    surrogate without its other half), which can be neither encoded nor written.

    Args:
        value: of `text`, which is JSON.
        place: of the value, for the error.
    """
    if not _HALF.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} has half a character, {ascii(error.object[error.start])}; mend that text, or "
            "make the file again"
        ) from None


class _Wrong(str):
    """A number of a JSON text that cannot be read."""


def no_number(text: str) -> Any:
    raise ValueError(text)


def finite_number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


class LenientDecoder(json.JSONDecoder):
    """Reads every number, those that cannot be read as texts that `wrong_number` finds."""

    def __init__(self, finite: bool):
        def lenient(read: Callable[[str], Any], text: str) -> Any:
            try:
                return read(text)
            except ValueError:
                return _Wrong(text)

        floats = partial(lenient, finite_number if finite else float)
        constants = partial(lenient, no_number if finite else float)
        super().__init__(
            parse_constant=constants, parse_float=floats, parse_int=partial(lenient, int)
        )


def wrong_number(value: Any) -> str:
    """First number that cannot be read in a value of `LenientDecoder`, and its keys."""
    found = _find_wrong(value)
    assert found is not None, "all numbers can be read"
    keys, wrong = found
    digits = len(wrong.lstrip("-"))
    what = wrong if digits <= sys.get_int_max_str_digits() else f"a number of {digits:,} digits"
    return f"{what}{' in ' + keys if keys else ''}"


def _place_of_number(text: str, line: int | None, finite: bool) -> str:
    """Row and key of the first number that cannot be read, and the number."""
    value = LenientDecoder(finite).decode(text)
    place = "" if line is None else f"line {line}, row {line - 1} "
    if line is None and isinstance(value, list):
        row, value = next((i, row) for i, row in enumerate(value) if _find_wrong(row))
        place = f"row {row} "
    return f"{place}has {wrong_number(value)}"


def _find_wrong(value: Any, keys: str = "") -> tuple[str, str] | None:
    """Keys down to the first number that cannot be read, and that number."""
    if isinstance(value, _Wrong):
        return keys, value
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = (_find_wrong(part, repr(key) if not keys else keys) for key, part in inside)
    return next(filter(None, found), None)
