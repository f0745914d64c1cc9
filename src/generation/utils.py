"""Rows of generation files, checked as they are read; and the checks that all commands share.

Those are: numbers in their range, and outputs that can be written and are no inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from generation.json_text import read_json, read_text
from generation.row_files import GenerationFile, Row, Rows, RowWriter, digest, open_rows, write_json

__all__ = [  # what other modules take from here
    "GenerationFile",
    "Row",
    "RowWriter",
    "Rows",
    "digest",
    "open_rows",
    "read_json",
    "read_text",
    "write_json",
]

PROMPT_THINKING = ("open", "closed", "unknown")  # see `generation.rendering`
# What a row of a generation file and its responses have, with their types. Several golds are a
# list.
GENERATION = {"id": (str, int), "problem": str, "answer": (str, list), "responses": list}
RESPONSE = {"text": str, "num_tokens": int, "finish_reason": str}
MOST_TOKENS = 1 << 40  # no count of tokens is larger
NUMBER = (int, float)
# finish_reason of a response that was not asked for: its prompt alone fills the context
NO_ROOM = "no_room"


def sample_seed(seed: int, row_id: str, sample: int) -> int:
    """Sampling seed in 0..2^31-1 of one response: the same whatever else is generated, and in
    whatever order."""
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
        raise ValueError(
            f"{key} is {path}, which this command also reads or writes; name another file"
        )
    check_output_folder(path.parent, key)


def check_output_folder(folder: str | Path, key: str) -> None:
    """Raise ValueError where a folder neither is there nor can be made, or may not be written
    to."""
    existing = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(
            f"{key}: {existing} is a file where a folder is needed; give another place"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"{key}: {existing} may not be written to; give another place, or change its "
            "permissions"
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
        or path.exists()
        or Path(path.parts[0]).is_dir()
    )


def read_rows(name: str, split: str | None = None, config: str | None = None) -> list[Row]:
    """Rows of a local `.json` file (a list of objects), a local `.jsonl` file, or a Hub dataset,
    all in memory.

    Raises ValueError naming the file, and the row (from 0) where one is at fault.
    """
    return list(any_rows(name, split, config))


def any_rows(
    name: str,
    split: str | None = None,
    config: str | None = None,
    check: Callable[[Row, int], None] = lambda row, i: None,
) -> Rows | list[Row]:
    """The same; those of a local file are read when they are asked for. `check` is called with
    every row, see `open_rows`."""
    if Path(name).suffix in (".json", ".jsonl"):
        return open_rows(name, check)
    rows = _read_hub(name, split, config)
    for i, row in enumerate(rows):
        check(row, i)
    return rows


def _read_hub(name: str, split: str | None, config: str | None) -> list[Row]:
    if not name or is_path(name):
        raise ValueError(
            f"{name!r} is no file of rows; name a file that ends in .json or .jsonl, or a Hub "
            "dataset"
        )
    from datasets import load_dataset

    try:
        return list(load_dataset(name, config, split=split))
    # no such dataset, split or configuration, or no connection
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"{name}: cannot be read from the Hub ({cause}); correct that, or give a .json or "
            ".jsonl file"
        ) from error


def check_columns(
    rows: Iterable[Row],
    columns: Mapping[str, type | tuple[type, ...]],
    name: str | Path,
    remedy: str,
) -> None:
    """Raise ValueError naming the first row without all of the columns, or with a value of
    another type in one."""
    for i, row in enumerate(rows):
        check_row(row, i, columns, name, remedy)


def check_row(
    row: Row, i: int, columns: Mapping[str, type | tuple[type, ...]], name: str | Path, remedy: str
) -> None:
    """Raise ValueError for row `i` without all of the columns, or with a value of another type
    in one."""
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
        check_id(row, i, name, first)


def check_id(row: Row, i: int, name: str | Path, first: dict[str, int]) -> None:
    """The same for row `i` and those before it, whose numbers by `id` are in `first`."""
    if (other := first.setdefault(str(row["id"]), i)) != i:
        raise ValueError(
            f"{name}: rows {other} and {i} have the same 'id', {row['id']!r}; make it unique, or "
            "leave it out"
        )


def read_generations(
    path: str | Path,
    columns: Mapping[str, type | tuple[type, ...]] | None = None,
    remedy: str = "",
    *,
    single: bool = False,
    look: Callable[[Row], None] = lambda row: None,
) -> Rows:
    """Rows of a file written by `generation.generate`, each read when it is asked for.

    Each has `id`, `problem`, `answer`, `responses` (a list of `text`, `num_tokens`,
    `finish_reason`) and whatever columns its input had.

    Args:
        path: file.
        columns: further columns that rows must have, and their types; `remedy` says what to do
            where they have not.
        single: refuse rows with several responses.
        look: called with every row, for what is to be known of all before any is worked on.

    Raises ValueError naming the file, and the row where one is at fault.
    """
    first: dict[str, int] = {}

    def check(row: Row, i: int) -> None:
        _check_generation(row, i, path)
        check_id(row, i, path, first)
        check_row(row, i, columns or {}, path, remedy)
        if single:
            check_single([row], path, i)
        look(row)

    return open_rows(path, check).mapped(_with_text_id)


def _with_text_id(row: Row, _: int) -> Row:
    row["id"] = str(row["id"])
    return row


def _check_generation(row: Row, i: int, path: str | Path) -> None:
    if missing := GENERATION.keys() - row.keys():
        raise ValueError(
            f"{path}: row {i} lacks {sorted(missing)}; is it a file of generation.generate?"
        )
    if row["responses"] == []:
        raise ValueError(f"{path}: row {i} has no responses; generate it again")
    golds = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if not golds or not all(isinstance(gold, str) for gold in golds):
        raise ValueError(
            f"{path}: row {i} has the 'answer' {_short(row['answer'])}; write it as a text"
        )
    check_row(row, i, GENERATION, path, "generate it again")
    for response in row["responses"]:
        _check_response(response, f"{path}: row {i}")


def check_single(rows: Iterable[Row], path: str | Path, first: int = 0) -> None:
    """Raise ValueError for a row with several responses in a file of which one each is read;
    `first` is its number."""
    for i, row in enumerate(rows, first):
        if (number := len(row["responses"])) != 1:
            raise ValueError(
                f"{path}: row {i} has {number} responses, of which only one would be read; "
                "generate it with n_generate_sample 1"
            )


def _check_response(response: Any, place: str) -> None:
    """Raise ValueError unless a response is what `generation.generate` writes."""
    if not isinstance(response, dict):
        raise ValueError(f"{place} has the response {_short(response)}; generate it again")
    if missing := RESPONSE.keys() - response.keys():
        raise ValueError(f"{place} has a response without {sorted(missing)}; generate it again")
    for key, kind in RESPONSE.items():
        if not is_a(response[key], kind):
            raise ValueError(
                f"{place} has a response with the {key} {_short(response[key])}; generate it again"
            )
    if not 0 <= response["num_tokens"] <= MOST_TOKENS:
        raise ValueError(
            f"{place} has a response of {_short(response['num_tokens'])} tokens; generate it again"
        )
    if response.get("prompt_thinking", "unknown") not in PROMPT_THINKING:
        given = _short(response["prompt_thinking"])
        raise ValueError(
            f"{place} has the prompt_thinking {given}; it must be {', '.join(PROMPT_THINKING)}, or "
            "missing"
        )
