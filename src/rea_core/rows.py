"""Rows of local files and Hub datasets, and checks of their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rea_core.checks import Kind, is_a, is_path, short_json
from rea_core.formats import SOME_FILE, SUFFIXES
from rea_core.row_files import AnyRows, Check, Row, open_rows
from rea_core.row_files import write_atomically as write_atomically  # has moved

Columns = Mapping[str, Kind]  # types by the name of the column


def read_rows(name: str, split: str | None = None, config: str | None = None) -> list[Row]:
    """Rows of a local file in any format, or of a Hub dataset, all in memory. Raises ValueError
    naming the file, and the row (from 0) if one is at fault."""
    return list(any_rows(name, split, config))


def any_rows(
    name: str,
    split: str | None = None,
    config: str | None = None,
    check: Check = lambda row, i: None,
) -> AnyRows:
    """The same; those of a local file are read when they are asked for. `check` is called with
    every row, see `open_rows`."""
    if Path(name).is_file() or Path(name).suffix in SUFFIXES:
        return open_rows(name, check)
    rows = _read_hub(name, split, config)
    for i, row in enumerate(rows):
        check(row, i)
    return rows


def _read_hub(name: str, split: str | None, config: str | None) -> list[Row]:
    import datasets

    saved = any(Path(name, file).is_file() for file in ("dataset_dict.json", "state.json"))
    if not saved and (not name or is_path(name)):
        raise ValueError(f"{name!r} is no file of rows; name {SOME_FILE}, or a Hub dataset")
    try:
        if saved:
            found = datasets.load_from_disk(name)
            return list(found[split] if isinstance(found, dict) else found)
        return list(datasets.load_dataset(name, config, split=split))
    # no such dataset, split or configuration, no connection, or a format that is not read any more
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:300]
        place = "" if saved else " from the Hub"
        raise ValueError(
            f"{name}: cannot be read{place} ({cause}); correct the name, "
            f"dataset_config or the split, or give {SOME_FILE}"
        ) from error


def check_columns(
    rows: Iterable[Row],
    columns: Columns,
    name: str | Path,
    remedy: str,
) -> None:
    """Raise ValueError naming the first row that lacks a column, or has another type in one."""
    for i, row in enumerate(rows):
        check_row(row, i, columns, name, remedy)


def check_row(row: Row, i: int, columns: Columns, name: str | Path, remedy: str) -> None:
    """Raise ValueError for row `i` without all of the columns, or with a value of another type
    in one, or that is no object."""
    if not isinstance(row, dict):
        raise ValueError(f"{name}: row {i} must be an object, but is {short_json(row)}; {remedy}")
    for column, kind in columns.items():
        if column not in row:
            raise ValueError(f"{name}: row {i} has no {column!r}; {remedy}")
        if not is_a(row[column], kind):
            raise ValueError(
                f"{name}: row {i} has the {column!r} {short_json(row[column])}; {remedy}"
            )


def check_id(row: Row, i: int, name: str | Path, first: dict[str, int]) -> None:
    """Raise ValueError for an `id` of an earlier row; numbers of rows by `id` are in `first`."""
    if (other := first.setdefault(str(row["id"]), i)) != i:
        raise ValueError(
            f"{name}: rows {other} and {i} have the same 'id', {row['id']!r}; make it unique, or "
            "leave it out"
        )
