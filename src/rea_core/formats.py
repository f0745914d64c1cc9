"""Files of rows in any format. What a file holds decides, not its name.

    JSON        a list of objects, or an object a line
    CSV         comma, semicolon or tab; the first line names the columns, all values are texts
    Parquet
    packed      each of these in gzip, bzip2 or xz

Files that are no plain JSON are copied to JSON lines once, in a temporary folder of this process.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".bz2", ".xz")
SOME_FILE = "a file (.json, .jsonl, .csv or .parquet, also with .gz)"
PACKED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open,
}  # fmt: skip
# begins of files that hold no text
BINARY = {b"PK": "a zip file", b"ARROW1": "an Arrow file", b"\x28\xb5\x2f\xfd": "a zstd file"}
SNIFFED = 1 << 16  # bytes of a first line
BATCH = 1000  # rows of a Parquet file that are in memory at once
SEPARATORS = ",;\t"
_COLUMN = re.compile(r"[A-Za-z_][\w .-]*")


def plain_json(path: Path) -> Path:
    """A file of rows as JSON: the file itself, or a copy that is made now.

    Raises ValueError naming the file if it cannot be unpacked or is in no known format, and the
    row of a table that has more or fewer cells than columns.
    """
    begin = _begin(path)
    unpack = next((unpack for magic, unpack in PACKED.items() if begin.startswith(magic)), None)
    if unpack is not None:
        return _renamed(path, plain_json, _unpacked(path, unpack))
    if begin.startswith(b"PAR1"):
        return _copied(path, _parquet_rows(path))
    if kind := next((kind for magic, kind in BINARY.items() if begin.startswith(magic)), None):
        raise ValueError(f"{path} is {kind}, which is not read; give {SOME_FILE}")
    if separator := _separator(path, begin):
        return _copied(path, _table_rows(path, separator))
    return path


def is_lines(path: Path) -> bool:
    """Whether a JSON file has a row a line, and is no list. Of an empty file the name tells."""
    begin = _begin(path).removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix != ".json" or begin[:1] != b"{":
        return path.suffix != ".json" and begin[:1] != b"["
    with path.open("rb") as file:
        try:
            row = json.loads(file.readline().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return False
        # of one object alone: a row has a text or a number
        return bool(file.read(SNIFFED).strip()) or any(
            isinstance(value, (str, int, float)) for value in row.values()
        )


def bare_name(name: str) -> str:
    """Last part of a file's name or Hub id, without the suffixes of formats."""
    bare = Path(name)
    while bare.suffix in SUFFIXES:
        bare = bare.with_suffix("")
    return bare.name


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SNIFFED)
    except OSError:
        return b""  # the reader says why


def _separator(path: Path, begin: bytes) -> str | None:
    """Separator of a table's columns; None for a file that is none."""
    line = begin.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace")
    if line.lstrip()[:1] in ("[", "{") or b"\0" in begin[:64]:
        return None
    separator = max(SEPARATORS, key=line.count)
    names = [name.strip().strip('"') for name in line.split(separator)]
    is_header = len(names) > 1 and all(map(_COLUMN.fullmatch, names))
    return separator if is_header or (path.suffix in (".csv", ".tsv") and line.strip()) else None


def _table_rows(path: Path, separator: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            columns = [name.strip() for name in next(reader)]
            if len(set(columns)) < len(columns):
                raise ValueError(f"two columns have one name, in {columns}; rename one")
            for i, cells in enumerate(filter(None, reader)):
                if len(cells) != len(columns):
                    raise ValueError(
                        f"row {i} has {len(cells)} cells, but there are {len(columns)} columns; "
                        "put texts with separators in quotes"
                    )
                yield dict(zip(columns, cells, strict=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 ({error.reason}); save the file as UTF-8") from None
        except csv.Error as error:
            raise ValueError(
                f"line {reader.line_num} is no line of a table ({error}); mend the quotes"
            ) from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"not Parquet to its end ({cause}); make the file again") from None


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rea-rl-rows-")


def _place(path: Path, suffix: str) -> Path:
    """A new file for a copy, whose name is still told from the others in a log."""
    return Path(tempfile.mkdtemp(dir=_folder().name), path.name).with_suffix(suffix)


def _unpacked(path: Path, unpack: Callable[[Path], Any]) -> Path:
    # of `a.json.gz` the name is `a.json`; of a name that says nothing, lines
    place = _place(path, "" if Path(path.stem).suffix in SUFFIXES else ".jsonl")
    try:
        with unpack(path) as packed, place.open("wb") as out:
            shutil.copyfileobj(packed, out)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); make the file again") from None
    return place


def _copied(path: Path, rows: Iterator[Row]) -> Path:
    place = _place(path, ".jsonl")
    try:
        with place.open("w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return place


def _renamed(path: Path, make: Callable[[Path], Path], copy: Path) -> Path:
    """`make(copy)`, whose errors name the file of the user."""
    try:
        return make(copy)
    except ValueError as error:
        raise ValueError(str(error).replace(str(copy), str(path))) from None
