"""Files of rows: read with errors that name file and row, written whole, and finished rows kept as they come."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Row = dict[str, Any]
NO_ROOM = "no_room"  # finish_reason of a response that was not asked for: its prompt alone fills the context


def sample_seed(seed: int, row_id: str, sample: int) -> int:
    """Sampling seed in 0..2^31-1 of one response: the same whatever else is generated, and in whatever order."""
    digest = hashlib.blake2b(f"{seed}/{row_id}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def read_rows(name: str, split: str | None = None, config: str | None = None) -> list[Row]:
    """Rows of a local `.json` file (a list of objects), a local `.jsonl` file, or a Hub dataset.

    Raises ValueError naming the file, and the row (from 0) where one is at fault.
    """
    path = Path(name)
    if path.suffix not in (".json", ".jsonl"):
        from datasets import load_dataset

        return list(load_dataset(name, config, split=split))
    if not path.is_file():
        raise ValueError(f"{name} does not exist")
    rows = _parse_lines(path) if path.suffix == ".jsonl" else _parse(path.read_text(), name)
    if not isinstance(rows, list) or not rows:
        found = type(rows).__name__ if rows else "empty"
        raise ValueError(f"{name}: must be a list of at least one row, but is {found}")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{name}: row {i} must be an object, but is {str(row)[:60]!r}")
    return rows


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either complete or absent. A list gets one line per element."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(element, ensure_ascii=False) for element in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    unfinished.write_text(text)
    os.replace(unfinished, path)


def read_generations(path: str | Path) -> list[Row]:
    """Rows of a file written by `generation.generate`.

    Each has `id`, `problem`, `answer`, `responses` (a list of `text`, `num_tokens`, `finish_reason`) and whatever
    columns its input had. Raises ValueError naming the file, and the row where one is at fault.
    """
    rows = read_rows(str(path))
    for i, row in enumerate(rows):
        if missing := {"id", "problem", "answer", "responses"} - row.keys():
            raise ValueError(f"{path}: row {i} lacks {sorted(missing)}; is it a file of generation.generate?")
        if not row["responses"]:
            raise ValueError(f"{path}: row {i} has no responses")
    return rows


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
        self._check_settings(path.with_suffix(".settings.json"), settings)
        self.finished = set() if self.complete else {index for index, _ in self._read_part()}
        if self.finished:
            logger.info("%s: going on after %d finished rows", self._part, len(self.finished))

    @property
    def complete(self) -> bool:
        """Whether the final file is there."""
        return self.path.exists()

    def append(self, index: int, row: Row) -> None:
        """Keep a finished row; `index` is its place in the final file. Rows come in any order."""
        with self._part.open("a") as file:
            file.write(json.dumps([index, row], ensure_ascii=False) + "\n")
        self.finished.add(index)

    def close(self) -> None:
        """Write the final file, rows in order, and remove the unfinished one."""
        write_json(self.path, [row for _, row in sorted(self._read_part(), key=lambda entry: entry[0])])
        self._part.unlink()

    def _check_settings(self, path: Path, settings: dict[str, Any]) -> None:
        if not (self.complete or self._part.exists()):
            write_json(path, settings)
            return
        before = json.loads(path.read_text()) if path.exists() else {}
        changed = [key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key)]
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
        for line in data[:whole].splitlines():
            index, row = json.loads(line)
            yield index, row


def digest(values: Iterable[str]) -> str:
    """Short fingerprint of a sequence of strings."""
    hasher = hashlib.blake2b(digest_size=8)
    for value in values:
        hasher.update(value.encode())
        hasher.update(b"\0")
    return hasher.hexdigest()


def _parse_lines(path: Path) -> list[Any]:
    return [_parse(line, f"{path}: row {i}") for i, line in enumerate(path.read_text().splitlines())]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
