"""Files of rows, read and written one row at a time, so that their size does not matter.

A `.json` file is a list with one row a line as written here, or any other layout of a list; a
`.jsonl` file has a row a line. `open_rows` looks at every row once and keeps only where each of
them is.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import mmap
import os
import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from rea_core.checks import made_by_others
from rea_core.formats import Row, is_lines, plain_json
from rea_core.json_text import (
    LenientDecoder,
    check_characters,
    finite_number,
    no_number,
    not_utf8,
    open_text,
    parse_json,
    read_json,
    too_deep,
    wrong_number,
)
from rea_core.ownership import own_file

Check = Callable[[Row, int], None]  # raises ValueError for a row, by its number in the file
Convert = Callable[[Row, int], Row]  # takes a row and its number in the file
BUFFER = CHUNK = 1 << 20  # bytes that are read at once
# characters that a number, a literal or an escape may still lack at the end of what was read
_UNFINISHED = 16
_PLACE = re.compile(rb"\[(\d+), ")  # begin of a line of an unfinished file


class Rows(Sequence[Row]):
    """Rows of a file. Each is read again whenever it is asked for; only its place is held.

    It can be sent to other processes, and a slice or selection is again `Rows`.

    Args:
        path: file.
        starts, sizes: first byte and number of bytes of each row.
        numbers: place of each row in the file.
        version: of the file when its rows were looked at.
        convert: makes a row of what the file has.
    """

    def __init__(
        self,
        path: Path,
        starts: array[int],
        sizes: array[int],
        numbers: Sequence[int],
        version: tuple[int, int],
        convert: Convert | None = None,
    ):
        self.path, self._version, self._convert = path, version, convert
        self._starts, self._sizes, self._numbers = starts, sizes, numbers

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            places = self._starts[place], self._sizes[place], self._numbers[place]
            return Rows(self.path, *places, self._version, self._convert)
        place = range(len(self))[place]
        return next(iter(self[place : place + 1]))

    def __iter__(self) -> Iterator[Row]:
        for data, number in zip(self.texts(), self._numbers, strict=True):
            row = json.loads(data)
            yield row if self._convert is None else self._convert(row, number)

    def texts(self) -> Iterator[bytes]:
        """Rows as the file has them. Raises ValueError if the file has changed."""
        with self.path.open("rb", buffering=BUFFER) as file:
            if _version(os.fstat(file.fileno())) != self._version:
                raise ValueError(
                    f"{self.path} was changed while it was read; run the command again"
                )
            for start, size in zip(self._starts, self._sizes, strict=True):
                file.seek(start)
                yield file.read(size)

    def select(self, places: Iterable[int]) -> Rows:
        """Rows at these places, in this order."""
        places = list(places)
        starts, sizes, numbers = (
            array("Q", (values[i] for i in places))
            for values in (self._starts, self._sizes, self._numbers)
        )
        return Rows(self.path, starts, sizes, numbers, self._version, self._convert)

    def mapped(self, convert: Convert) -> Rows:
        """The same rows, converted once more."""
        places = self._starts, self._sizes, self._numbers
        return Rows(self.path, *places, self._version, _Chain(self._convert, convert))

    def batches(self, num_bytes: int) -> Iterator[Rows]:
        """All rows as slices of about so many bytes, and of at least one row."""
        start, size = 0, 0
        for i, more in enumerate(self._sizes):
            if size and size + more > num_bytes:
                yield self[start:i]
                start, size = i, 0
            size += more
        if size:
            yield self[start:]

    @property
    def place(self) -> str:
        """The file and the number of the first row, for messages."""
        return f"{self.path}: row {self._numbers[0]}"

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(self._sizes)

    @property
    def digest(self) -> str:
        """Fingerprint of the rows as they are written."""
        return digest(self.texts())


AnyRows = Rows | list[Row]  # of a file, or few in memory


class _Chain:
    """Two conversions in turn, as an object that can be sent to other processes."""

    def __init__(self, first: Convert | None, second: Convert):
        self._first, self._second = first, second

    def __call__(self, row: Row, number: int) -> Row:
        return self._second(row if self._first is None else self._first(row, number), number)


def _version(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def open_rows(name: str | Path, check: Check = lambda row, i: None) -> Rows:
    """Rows of a file in any of the formats of `rea_core.formats`.

    Args:
        name: file.
        check: called with each row and its number; it raises ValueError for what a row may not be.

    Raises ValueError naming the file, and the line and column, or the row, of a mistake. What is no
    JSON is said first.
    """
    given = Path(name)
    path = plain_json(given)
    try:
        return _look_at_all(path, check)
    except ValueError as error:
        if path == given:
            raise
        raise ValueError(str(error).replace(str(path), str(given))) from None


def _look_at_all(path: Path, check: Check) -> Rows:
    with open_text(path, BUFFER) as file:
        version = _version(os.fstat(file.fileno()))
    starts, sizes = array("Q"), array("Q")
    refused: ValueError | None = None
    for i, (start, size, row) in enumerate(
        _scan_lines(path) if is_lines(path) else _scan_list(path)
    ):
        try:
            if refused is None:
                if not isinstance(row, dict):
                    raise ValueError(
                        f"{path}: row {i} must be an object, but is {str(row)[:60]!r}; write "
                        "{...}"
                    )
                check(row, i)
        except ValueError as error:
            refused = error
        starts.append(start)
        sizes.append(size)
    if not starts:
        raise _no_rows(path, "empty")
    if refused is not None:
        raise refused
    return Rows(path, starts, sizes, range(len(starts)), version)


def _no_rows(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path}: must be a list of at least one row, but is {found}; write [{{...}}, {{...}}]"
    )


# --- A row a line ---------------------------------------------------------------------------------


def _scan_lines(path: Path) -> Iterator[tuple[int, int, Any]]:
    """First byte, bytes and value of every line. Blank lines may only be at the end."""
    blank: int | None = None
    with open_text(path, BUFFER) as file:
        for number, (start, data) in enumerate(_lines(file), 1):
            if not data.strip(b" \t\r\n"):
                blank = blank or number
                continue
            if blank:
                parse_json("", path, blank)
            data = data.rstrip(b"\r\n")
            # Files that were joined have a byte order mark in the middle.
            mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
            try:
                text = data[mark:].decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path, number, error.reason) from None
            row = parse_json(text, path, number, finite=True)
            check_characters(row, text, f"{path}: line {number}, row {number - 1}")
            yield start + mark, len(data) - mark, row


def _lines(file: BufferedReader) -> Iterator[tuple[int, bytes]]:
    """First byte and bytes of every line, which may end as on any system."""
    start = 0
    for line in file:
        for part in re.findall(rb"[^\r\n]*(?:\r?\n|\r)|[^\r\n]+", line):
            yield start, part
            start += len(part)


# --- A list ---------------------------------------------------------------------------------------


class _Window:
    """A part of a file's text, which grows at its end and is let go at its begin."""

    def __init__(self, path: Path, file: BufferedReader):
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.position = "", 0  # the next character
        # and its first byte
        self.byte = len(codecs.BOM_UTF8) if file.peek(3).startswith(codecs.BOM_UTF8) else 0
        self.ended = False

    def grow(self) -> None:
        """Read on, by as much again as is left."""
        left = self.text[self.position :]
        data = self._file.read(max(CHUNK, len(left)))
        self.ended = not data
        try:
            self.text, self.position = left + self._decoder.decode(data, final=self.ended), 0
        except UnicodeDecodeError as error:
            place = self._file.tell() - len(data) + error.start
            line = _place(self._path, max(place, 0))[0]
            raise not_utf8(self._path, line, error.reason) from None

    def pass_over(self, end: int) -> int:
        """Go to a position; returns the bytes up to there."""
        passed = self.text[self.position : end]
        size = len(passed) if passed.isascii() else len(passed.encode())
        self.position, self.byte = end, self.byte + size
        return size

    def next_character(self) -> str:
        """Move to the next character that is no white space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.position)
            assert space is not None, "it may be empty"
            end = space.end()
            self.pass_over(end)
            if end < len(self.text):
                return self.text[end]
            if self.ended:
                return ""
            self.grow()

    def error(self, message: str, position: int) -> ValueError:
        """Error that says where the file is no JSON."""
        before = self.text[self.position : position]
        line, column = _place(self._path, self.byte + len(before.encode()))
        place = f"{self._path}, line {line}, column {column}"
        return ValueError(f"{place}: not JSON ({message}); mend that place, or make the file again")


_END_OF_LINE = re.compile(rb"\r\n?|\n")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_constant=no_number, parse_float=finite_number)


def _scan_list(path: Path) -> Iterator[tuple[int, int, Any]]:
    """First byte, bytes and value of every element of the list."""
    with open_text(path, BUFFER) as file:
        window = _Window(path, file)
        if window.next_character() != "[":
            value = read_json(path, finite=True)  # raises for a file that is empty or no JSON
            raise _no_rows(path, type(value).__name__ if value else "empty")
        window.pass_over(window.position + 1)
        if window.next_character() == "]":
            return
        for number in count():
            window.next_character()
            value, end = _decode(window, path, number)
            check_characters(value, window.text[window.position : end], f"{path}: row {number}")
            start = window.byte
            yield start, window.pass_over(end), value
            if (mark := window.next_character()) == "]":
                break
            if mark != ",":
                raise window.error("Expecting ',' delimiter", window.position)
            window.pass_over(window.position + 1)
        window.pass_over(window.position + 1)
        if window.next_character():
            raise window.error("Extra data", window.position)


def _decode(window: _Window, path: Path, number: int) -> tuple[Any, int]:
    """Value at the window's position, and its end; the file is read on until it is whole."""
    while True:
        try:
            return _decode_here(window, path, number)
        except json.JSONDecodeError as error:
            may_go_on = error.msg.startswith(
                "Unterminated string"
            ) or error.pos + _UNFINISHED > len(window.text)
            if window.ended or not may_go_on:
                raise window.error(error.msg, error.pos) from None
        except RecursionError:
            raise too_deep(path) from None
        window.grow()


def _decode_here(window: _Window, path: Path, number: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(window.text, window.position)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number that none is, or with more digits than Python reads
        value, _ = LenientDecoder(finite=True).raw_decode(window.text, window.position)
        raise ValueError(
            f"{path}: row {number} has {wrong_number(value)}; write a number, a text or null"
        ) from None


def _place(path: Path, byte: int) -> tuple[int, int]:
    """Line and column, from 1, of a byte of a file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begins = [0, *(match.end() for match in _END_OF_LINE.finditer(data, 0, byte))]
        return len(begins), len(data[begins[-1] : byte].decode("utf-8-sig", "replace")) + 1


# --- Writing --------------------------------------------------------------------------------------

# begin, between two rows, end
JSON_LIST, JSON_LINES = (b"[\n", b",\n", b"\n]\n"), (b"", b"\n", b"\n")


def check_replaceable(path: Path, row: Any) -> None:
    """Raise ValueError for a file that is there and holds no rows like `row`: half of the columns
    or more are not shared by both. Versions of a program differ by less."""
    if not (path.exists() and isinstance(row, dict)):
        return
    columns = _columns(path)
    if columns is None:
        return
    if 2 * len(columns & row.keys()) <= len(columns | row.keys()):
        raise made_by_others(path)


def _columns(path: Path) -> set[str] | None:
    """Keys of the first row of a file of ours, none of another file; None without rows."""
    with path.open("rb") as file:
        begin = file.peek()
    if begin.strip() in (b"", b"[]") or begin == b"[\n\n]\n":
        return None
    try:
        if is_lines(path) or begin.startswith(b"[\n{"):
            _, _, row = next(_scan_lines(path) if is_lines(path) else _scan_list(path))
            return {*row} if isinstance(row, dict) else set()
    except (ValueError, StopIteration):
        pass  # no JSON, or blank lines only
    return set()


class RowWriter:
    """A `.json` or `.jsonl` file of rows, one a line, which is either complete or absent.

    Args:
        path: file.
        num_sections: parts of the file, whose rows come in any order; the file has one part after
            the other.
        is_output: whether a user names the file, which must not take the place of another one.

    Raises ValueError if another process writes the file, or, at the first row, if another file is
    there.
    """

    def __init__(self, path: str | Path, num_sections: int = 1, is_output: bool = False):
        self.path, self._is_output = Path(path), is_output
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begin = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._names = [begin.with_name(f"{begin.name}.{i}") for i in range(num_sections)]
        self._files: list[BinaryIO] = []
        self._begin, self._between, self._end = (
            JSON_LIST if self.path.suffix == ".json" else JSON_LINES
        )
        self.num_rows = 0

    def __enter__(self) -> RowWriter:
        self._ownership = own_file(self.path)
        self._files = [name.open("w+b", buffering=BUFFER) for name in self._names]
        self._files[0].write(self._begin)
        return self

    def add(self, row: Any, section: int = 0) -> None:
        """Write a row."""
        self.add_text(json.dumps(row, ensure_ascii=False).encode(), section)

    def add_text(self, text: bytes, section: int = 0) -> None:
        """Write a row that is JSON already."""
        if self._is_output and not self.num_rows:
            check_replaceable(self.path, json.loads(text))
        self._files[section].write(text + self._between)
        self.num_rows += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._close(kind is None)
        except OSError as failed:
            failed.filename = failed.filename or str(self.path)  # a full disk names no file
            raise

    def _close(self, is_complete: bool) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._ownership)
            for name, file in zip(self._names, self._files, strict=True):
                stack.callback(name.unlink, missing_ok=True)
                stack.enter_context(file)
            if is_complete:
                self._complete()

    def _complete(self) -> None:
        first, *others = self._files
        for file in others:
            file.seek(0)
            shutil.copyfileobj(file, first, CHUNK)
            file.truncate(0)
        if self.num_rows:
            first.seek(-len(self._between), os.SEEK_END)
            first.truncate()
        first.write(self._end)
        first.flush()
        os.replace(self._names[0], self.path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either complete or absent. A list, or rows one at a time,
    get one line each."""
    if isinstance(value, (list, Rows, Iterator)):
        with RowWriter(path) as out:
            for row in value:
                out.add(row)
        return
    write_atomically(path, [json.dumps(value, ensure_ascii=False, indent=1)])


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write a text file so that it is either complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


DIGESTS = {"model_digest", "input_digest", "first_prompt"}


def digest(values: Iterable[str | bytes]) -> str:
    """Short fingerprint of a sequence of texts."""
    hasher = hashlib.blake2b(digest_size=8)
    for value in values:
        hasher.update(value.encode() if isinstance(value, str) else value)
        hasher.update(b"\0")
    return hasher.hexdigest()
