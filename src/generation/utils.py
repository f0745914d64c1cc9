"""Files of rows: read with errors that name file and row, written whole, and finished rows kept as they come.

Also the checks that all commands share: numbers in their range, and outputs that can be written and are no inputs.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Row = dict[str, Any]
PROMPT_THINKING = ("open", "closed", "unknown")  # see `generation.rendering`
# What a row of a generation file and its responses have, with their types. Several golds are a list.
GENERATION = {"id": (str, int), "problem": str, "answer": (str, list), "responses": list}
RESPONSE = {"text": str, "num_tokens": int, "finish_reason": str}
MOST_TOKENS = 1 << 40  # no count of tokens is larger
NUMBER = (int, float)
NO_ROOM = "no_room"  # finish_reason of a response that was not asked for: its prompt alone fills the context


def sample_seed(seed: int, row_id: str, sample: int) -> int:
    """Sampling seed in 0..2^31-1 of one response: the same whatever else is generated, and in whatever order."""
    digest = hashlib.blake2b(f"{seed}/{row_id}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def check_numbers(
    values: Mapping[str, Any],
    *,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raise ValueError naming the key of a number that is out of its range.

    Args:
        values: arguments by key; keys that are absent or None (not given) are passed over.
        positive: keys whose number must be greater than 0.
        not_negative: keys whose number must be 0 or more.
        shares: keys whose number must be from 0 to 1.
    """
    ranges = (
        (positive, lambda number: number > 0, "greater than 0"),
        (not_negative, lambda number: number >= 0, "0 or more"),
        (shares, lambda number: 0 <= number <= 1, "from 0 to 1"),
    )
    for keys, is_within, words in ranges:
        for key in keys:
            if (number := values.get(key)) is not None and not is_within(number):
                raise ValueError(f"{key} is {number}; it must be {words}")


def check_output(path: str | Path, key: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ValueError where a file cannot be written, or would take the place of one that is read.

    Args:
        path: file to be written; there may be an older one.
        key: argument that names it.
        inputs: files that are read or written as well; None are passed over.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{key} is {path}, which is a folder; name a file")
    if path.resolve() in {Path(file).resolve() for file in inputs if file is not None}:
        raise ValueError(f"{key} is {path}, which this command also reads or writes; name another file")
    check_output_folder(path.parent, key)


def check_output_folder(folder: str | Path, key: str) -> None:
    """Raise ValueError where a folder neither is there nor can be made, or may not be written to."""
    existing = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{key}: {existing} is a file where a folder is needed; give another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{key}: {existing} may not be written to; give another place, or change its permissions")


def is_path(name: str) -> bool:
    """Whether a name means something on the disk and not a Hub id.

    `model/X` is a folder wherever there is a folder `model`, and so are all names that are no `owner/name`.
    """
    path = Path(name)
    return name.startswith((".", "/")) or len(path.parts) > 2 or path.exists() or Path(path.parts[0]).is_dir()


def read_text(path: str | Path) -> str:
    """Text of a file, without a byte order mark, and with newlines for all ends of lines.

    Raises ValueError naming the file, and the line that is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; make it first, or correct the name") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a file that can") from None
    if wide := _wide_encoding(data):
        raise ValueError(f"{path}, line 1: not UTF-8 (it is {wide}); save the file as UTF-8")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None


def _wide_encoding(data: bytes) -> str | None:
    """Name of an encoding with two or four bytes a letter, with or without a byte order mark; None for others."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    begin = data[: 2 * (min(len(data), 64) // 2)]
    every_other_is_zero = len(begin) >= 4 and not (any(begin[::2]) and any(begin[1::2]))
    return "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or every_other_is_zero else None


def read_json(path: str | Path, finite: bool = False) -> Any:
    """What a JSON file holds.

    Args:
        path: file.
        finite: refuse NaN and infinities, which Python's JSON knows; configurations of models have some.

    Raises ValueError naming the file, and the line and column, or the row, of a mistake.
    """
    if not (text := read_text(path)).strip():
        raise ValueError(f"{path} is empty; make the file again")
    return _parse(text, path, finite=finite)


def read_rows(name: str, split: str | None = None, config: str | None = None) -> list[Row]:
    """Rows of a local `.json` file (a list of objects), a local `.jsonl` file, or a Hub dataset.

    Raises ValueError naming the file, and the row (from 0) where one is at fault.
    """
    suffix = Path(name).suffix
    if suffix not in (".json", ".jsonl"):
        return _read_hub(name, split, config)
    rows = _parse_lines(name) if suffix == ".jsonl" else read_json(name, finite=True)
    if not isinstance(rows, list) or not rows:
        found = type(rows).__name__ if rows else "empty"
        raise ValueError(f"{name}: must be a list of at least one row, but is {found}; write [{{...}}, {{...}}]")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{name}: row {i} must be an object, but is {str(row)[:60]!r}; write {{...}}")
    return rows


def _read_hub(name: str, split: str | None, config: str | None) -> list[Row]:
    if not name or is_path(name):
        raise ValueError(f"{name!r} is no file of rows; name a file that ends in .json or .jsonl, or a Hub dataset")
    from datasets import load_dataset

    try:
        return list(load_dataset(name, config, split=split))
    except (OSError, ValueError) as error:  # no such dataset, split or configuration, or no connection
        cause = " ".join(str(error).split())
        raise ValueError(
            f"{name}: cannot be read from the Hub ({cause}); correct that, or give a .json or .jsonl file"
        ) from error


def check_columns(
    rows: Iterable[Row], columns: Mapping[str, type | tuple[type, ...]], name: str | Path, remedy: str
) -> None:
    """Raise ValueError naming the first row without all of the columns, or with a value of another type in one."""
    for i, row in enumerate(rows):
        for column, kind in columns.items():
            if column not in row:
                raise ValueError(f"{name}: row {i} has no {column!r}; {remedy}")
            if not is_a(row[column], kind):
                raise ValueError(f"{name}: row {i} has the {column!r} {_short(row[column])}; {remedy}")


def is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value of JSON is of a type; true and false are no numbers."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def check_ids(rows: Iterable[Row], name: str | Path) -> None:
    """Raise ValueError for two rows with one `id`."""
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        if (other := first.setdefault(str(row["id"]), i)) != i:
            raise ValueError(
                f"{name}: rows {other} and {i} have the same 'id', {row['id']!r}; make it unique, or leave it out"
            )


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either complete or absent. A list gets one line per element."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(element, ensure_ascii=False) for element in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read_generations(path: str | Path) -> list[Row]:
    """Rows of a file written by `generation.generate`.

    Each has `id`, `problem`, `answer`, `responses` (a list of `text`, `num_tokens`, `finish_reason`) and whatever
    columns its input had. Raises ValueError naming the file, and the row where one is at fault.
    """
    rows = read_rows(str(path))
    for i, row in enumerate(rows):
        if missing := GENERATION.keys() - row.keys():
            raise ValueError(f"{path}: row {i} lacks {sorted(missing)}; is it a file of generation.generate?")
        if row["responses"] == []:
            raise ValueError(f"{path}: row {i} has no responses; generate it again")
        golds = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        if not golds or not all(isinstance(gold, str) for gold in golds):
            raise ValueError(f"{path}: row {i} has the 'answer' {_short(row['answer'])}; write it as a text")
    check_columns(rows, GENERATION, path, "generate it again")
    for i, row in enumerate(rows):
        for response in row["responses"]:
            _check_response(response, f"{path}: row {i}")
        row["id"] = str(row["id"])
    check_ids(rows, path)
    return rows


def check_single(rows: Iterable[Row], path: str | Path) -> None:
    """Raise ValueError for a row with several responses in a file of which one each is read."""
    for i, row in enumerate(rows):
        if (number := len(row["responses"])) != 1:
            raise ValueError(
                f"{path}: row {i} has {number} responses, of which only one would be read; generate it with "
                "n_generate_sample 1"
            )


def _check_response(response: Any, place: str) -> None:
    """Raise ValueError unless a response is what `generation.generate` writes."""
    if not isinstance(response, dict):
        raise ValueError(f"{place} has the response {_short(response)}; generate it again")
    if missing := RESPONSE.keys() - response.keys():
        raise ValueError(f"{place} has a response without {sorted(missing)}; generate it again")
    for key, kind in RESPONSE.items():
        if not is_a(response[key], kind):
            raise ValueError(f"{place} has a response with the {key} {_short(response[key])}; generate it again")
    if not 0 <= response["num_tokens"] <= MOST_TOKENS:
        raise ValueError(f"{place} has a response of {_short(response['num_tokens'])} tokens; generate it again")
    if response.get("prompt_thinking", "unknown") not in PROMPT_THINKING:
        given = _short(response["prompt_thinking"])
        raise ValueError(f"{place} has the prompt_thinking {given}; it must be {', '.join(PROMPT_THINKING)}, or missing")


class GenerationFile:
    """Output of a generation stage: `<path>` once complete, `<path stem>.part.jsonl` until then.

    Beside it stands `<path stem>.settings.json`, what the rows were made with, so that a file is never continued, or
    taken for complete, under other settings.

    Args:
        path: final file, `.json`.
        settings: everything that the rows depend on.

    Raises ValueError if there is a finished or unfinished file made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self._part = path.with_suffix(".part.jsonl")
        self._settings = path.with_suffix(".settings.json"), settings
        self._check_settings(*self._settings)
        self.num_tokens = 0  # of the responses that this run has added
        self.finished = set() if self.complete else {index for index, _ in self._read_part()}
        if self.finished:
            logger.info("%s: going on after %d finished rows", self._part, len(self.finished))

    @property
    def complete(self) -> bool:
        """Whether the final file is there."""
        return self.path.exists()

    def append(self, index: int, row: Row) -> None:
        """Keep a finished row; `index` is its place in the final file. Rows come in any order."""
        if not self.finished:
            write_json(*self._settings)
        with self._part.open("a", encoding="utf-8") as file:
            file.write(json.dumps([index, row], ensure_ascii=False) + "\n")
        self.finished.add(index)

    def close(self) -> None:
        """Write the final file, rows in order, and remove the unfinished one."""
        rows = dict(self._read_part())  # of an index that was written twice, the last row
        write_json(self.path, [rows[index] for index in sorted(rows)])
        self._part.unlink()

    def _check_settings(self, path: Path, settings: dict[str, Any]) -> None:
        if not (self.complete or self._part.exists()):
            return
        before = read_json(path) if path.exists() else {}
        # A setting that an earlier version did not know had no value then; a digest it did not take is not known.
        keys = before.keys() | settings.keys() - ({"model_digest"} - before.keys())
        changed = [key for key in keys if (before.get(key) or None) != (settings.get(key) or None)]
        if changed:
            changes = ", ".join(f"{key} ({before.get(key)!r}, now {settings.get(key)!r})" for key in sorted(changed))
            raise ValueError(
                f"{self.path if self.complete else self._part} was made with other settings: {changes}; "
                "give another --save_suffix, or delete the file"
            )

    def _read_part(self) -> Iterator[tuple[int, Row]]:
        """Finished rows. A killed run may leave an unfinished last line, which is cut off: its row is made again."""
        if not self._part.exists():
            return
        data = self._part.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            logger.info("%s: the last row was not written to its end and is made again", self._part)
            with self._part.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            index, row = _parse(line.decode("utf-8"), self._part, number)
            yield index, row


def digest(values: Iterable[str]) -> str:
    """Short fingerprint of a sequence of strings."""
    hasher = hashlib.blake2b(digest_size=8)
    for value in values:
        hasher.update(value.encode())
        hasher.update(b"\0")
    return hasher.hexdigest()


def _parse_lines(path: str) -> list[Any]:
    # Not `splitlines`: a string of JSON may hold other ends of lines, such as U+2028.
    lines = read_text(path).rstrip(" \t\n").split("\n")
    if lines == [""]:
        return []
    # Files that were joined have a byte order mark in the middle.
    return [_parse(line.removeprefix("\ufeff"), path, number, finite=True) for number, line in enumerate(lines, 1)]


def _parse(text: str, path: str | Path, line: int | None = None, finite: bool = False) -> Any:
    """Value of a JSON text: of a whole file, or of one line of it, counted from 1."""
    numbers = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        return json.loads(text, **numbers)
    except json.JSONDecodeError as error:
        place = f"line {(line or 1) + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"{path}, {place}: not JSON ({error.msg}); mend that place, or make the file again") from None
    except RecursionError:
        raise ValueError(f"{path}: lists or objects in each other, hundreds deep; make the file again") from None
    except ValueError:  # a number that none is, or with more digits than Python reads
        place = _place_of_number(text, line, finite)
        raise ValueError(f"{path}: {place}; write a number, a text or null") from None


class _Wrong(str):
    """A number of a JSON text that cannot be read."""


def _no_number(text: str) -> Any:
    raise ValueError(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _place_of_number(text: str, line: int | None, finite: bool) -> str:
    """Row and key of the first number that cannot be read, and the number."""

    def number(read: Callable[[str], Any], text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            return _Wrong(text)

    constant = partial(number, _no_number if finite else float)
    value = json.loads(
        text,
        parse_constant=constant,
        parse_float=partial(number, _finite if finite else float),
        parse_int=partial(number, int),
    )
    place = "" if line is None else f"line {line}, row {line - 1}"
    if line is None and isinstance(value, list):
        row, value = next((i, row) for i, row in enumerate(value) if _find_wrong(row))
        place = f"row {row}"
    keys, wrong = _find_wrong(value)
    digits = len(wrong.lstrip("-"))
    what = wrong if digits <= sys.get_int_max_str_digits() else f"a number of {digits:,} digits"
    return f"{place} has {what}{' in ' + keys if keys else ''}".strip()


def _find_wrong(value: Any, keys: str = "") -> tuple[str, str] | None:
    """Keys down to the first number that cannot be read, and that number."""
    if isinstance(value, _Wrong):
        return keys, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (_find_wrong(part, repr(key) if not keys else keys) for key, part in inside)
    return next(filter(None, found), None)
