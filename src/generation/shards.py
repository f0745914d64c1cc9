"""A stage on several hosts: each answers its share of the rows, and the shares are joined.

    python -m generation.generate ARGUMENTS --shard 1/4    # and 2/4, 3/4, 4/4
    python -m generation.generate ARGUMENTS                # joins them

Row i of the input belongs to share i modulo n, so that shares take about equally long. The joined
file is the one that a single run would have made, byte for byte: seeds are of rows.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.generation_file import GenerationFile, read_generations
from rea_core.json_text import parse_json
from rea_core.row_files import AnyRows, Row

logger = logging.getLogger(__name__)

_FILE = re.compile(r"\.shard-(\d+)-of-(\d+)\.(?:json|part\.jsonl)$")
MOST_NAMED = 5  # missing rows that an error names


@dataclass(frozen=True)
class Shard:
    """Share `number`, from 1, of `count`."""

    number: int
    count: int

    @classmethod
    def read(cls, text: str) -> Shard:
        """Of `2/4`. Raises ValueError for another text."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(
                f"shard is {text!r}; write the number of this share, from 1, and how many there "
                "are: 1/4"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def path(self, output: Path) -> Path:
        """File of this share of an output."""
        return output.with_name(f"{output.stem}.shard-{self.number}-of-{self.count}.json")

    def of(self, rows: Any) -> Any:
        """Rows of this share."""
        return rows[self.number - 1 :: self.count]


def shards_of(output: Path) -> list[Shard]:
    """All shares of an output, if any was begun. Raises ValueError for shares of two numbers."""
    names = (
        _FILE.search(path.name)
        for path in output.parent.glob(f"{glob.escape(output.stem)}.shard-*")
    )
    counts = sorted({int(found[2]) for found in names if found})
    if len(counts) > 1:
        raise ValueError(
            f"{output} has shares of {' and of '.join(map(str, counts))}; delete those of the "
            "wrong number"
        )
    return [Shard(i, counts[0]) for i in range(1, counts[0] + 1)] if counts else []


def input_id(row: Row, split: str) -> str:
    """Id of the row of the input that a row of the output was made of."""
    return str(row["problem_id" if split.startswith("labeling") else "id"])


def join(
    output: GenerationFile,
    shards: list[Shard],
    rows: AnyRows,
    split: str,
    is_asked: Callable[[Row], bool],
) -> None:
    """Write the output of complete shares, in the order of the input, and remove these.

    `is_asked` says whether a row of the input makes any of the output: a response without a
    thinking has no labels. Raises ValueError naming missing rows, and shares of other settings.
    """
    files = {shard: _File(output, shard, split) for shard in shards}
    missing: list[str] = []
    places: list[tuple[_File, list[int]]] = []
    for i, row in enumerate(rows):
        name, file = str(row["id"]), files[shards[i % len(shards)]]
        if name in file.places:
            places.append((file, file.places[name]))
        elif name not in file.begun and not (file.complete and not is_asked(row)):
            missing.append(name)
    open_shards = [str(shard) for shard, file in files.items() if not file.complete]
    if missing or open_shards:
        raise _missing(output.path, missing, open_shards, len(rows))
    output.take(text for file, chosen in places for text in file.rows.select(chosen).texts())
    for file in files.values():
        file.remove()
    logger.info("%s: joined %d shares", output.path, len(shards))


class _File:
    """File of a share: where its rows are, by the row of the input; of an unfinished one only which
    there are."""

    def __init__(self, output: GenerationFile, shard: Shard, split: str):
        self.path = shard.path(output.path)
        settings = {**output.settings, "shard": str(shard)}
        self.complete = self.path.exists()
        self.rows: AnyRows = []
        self.places: dict[str, list[int]] = {}
        self.begun: set[str] = set()
        if self.complete:
            GenerationFile(self.path, settings)  # raises for other settings
            is_empty = self.path.stat().st_size <= len("[\n\n]\n")
            self.rows = [] if is_empty else read_generations(self.path)
            for place, row in enumerate(self.rows):
                self.places.setdefault(input_id(row, split), []).append(place)
        else:
            self.begun = {input_id(row, split) for row in _unfinished(self.path)}

    def remove(self) -> None:
        for path in (self.path, self.path.with_suffix(".settings.json")):
            path.unlink(missing_ok=True)


def _unfinished(path: Path) -> Iterator[Row]:
    part = path.with_suffix(".part.jsonl")
    if part.exists():
        with part.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):  # a killed run may leave half a line
                    yield parse_json(line.decode("utf-8"), part, number)[1]


def _missing(output: Path, names: list[str], shards: list[str], total: int) -> ValueError:
    listed = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    those = f"shares {', '.join(shards)} are" if shards else "a share has lost rows and is"
    return ValueError(
        f"{output}: {those} not complete, and {len(names)} of {total} rows are missing: {listed}; "
        "run them with --shard, or delete the files of all shares to answer all rows here"
    )
