"""Generation files: written row by row, resumed, and checked as they are read."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from generation.identity import check_edited
from generation.markers import known_markers
from rea_core.checks import is_a, short_json
from rea_core.json_text import parse_json, read_json
from rea_core.ownership import own_file
from rea_core.row_files import _PLACE, BUFFER, DIGESTS, Row, Rows, RowWriter, open_rows, write_json
from rea_core.rows import Columns, check_id, check_row

logger = logging.getLogger(__name__)

Settings = dict[str, Any]
ANOTHER = "wait for it, or give another --save_suffix"


class GenerationFile:
    """Output of a generation stage: `<path>` once complete, `<path stem>.part.jsonl` until then.

    Next to it is `<path stem>.settings.json`, the settings of the rows, so that a file is
    never continued, or taken for complete, under other settings.

    Args:
        path: final file, `.json`.
        settings: everything that the rows depend on.

    One process at a time makes it; it is left with `close`, or as a context.

    Raises ValueError if there is a finished or unfinished file made with other settings, or if
    another process makes it.
    """

    def __init__(self, path: Path, settings: Settings):
        self.path = path
        self._ownership = None if self.complete else own_file(path, ANOTHER)
        self._part = path.with_suffix(".part.jsonl")
        self.settings = settings
        self._settings = path.with_suffix(".settings.json"), settings
        self.model = {key: settings[key] for key in MODEL if settings.get(key) is not None}
        self._check_settings(*self._settings)
        self.num_tokens = 0  # of the responses that this run has added
        self._unanswered: dict[int, str] = {}  # ids of rows
        self.finished = set() if self.complete else {index for index, *_ in self._read_part()}
        if self.finished:
            logger.info("%s: continuing after %d finished rows", self._part, len(self.finished))
        if self._unanswered:
            logger.warning(
                "%s: %d of them are unanswered, and are not asked again: %s; delete the file to "
                "ask all rows again",
                *(self._part, len(self._unanswered), ", ".join(self._unanswered.values())[:300]),
            )

    @property
    def complete(self) -> bool:
        """Whether the final file is there."""
        return self.path.exists()

    def __enter__(self) -> GenerationFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ownership is not None:
            self._ownership.release()

    def append(self, index: int, row: Row) -> None:
        """Keep a finished row; `index` is its place in the final file. Rows come in any order."""
        if not self.finished:
            write_json(*self._settings)
        with self._part.open("a", encoding="utf-8") as file:
            file.write(json.dumps([index, row], ensure_ascii=False) + "\n")
        self.finished.add(index)

    def close(self) -> None:
        """Write the final file, rows in order, and remove the unfinished one.

        Raises ValueError if rows are missing that were made, or that come before others.
        """
        if not self.finished:  # a share whose rows ask nothing
            write_json(*self._settings)
            self._part.touch()
        # of an index that was written twice, the last
        places = {index: place for index, *place in self._read_part()}
        expected = {*self.finished, *range(max(self.finished, default=-1) + 1)}
        if lost := sorted(expected - {*places}):
            raise ValueError(
                f"{self._part} has lost {len(lost)} rows, the first is row {lost[0]}; nothing else "
                "may write or delete it; run the command again"
            )
        with RowWriter(self.path) as out, self._part.open("rb") as part:
            for _, (start, size) in sorted(places.items()):
                part.seek(start)
                out.add_text(part.read(size))
        self._part.unlink()
        self.__exit__()

    def take(self, rows: Iterable[bytes]) -> None:
        """Write the final file of rows that others have made, which come in order as JSON."""
        write_json(*self._settings)
        with RowWriter(self.path) as out:
            for row in rows:
                out.add_text(row)
        self._part.unlink(missing_ok=True)
        self.__exit__()

    def _check_settings(self, path: Path, settings: Settings) -> None:
        if not (self.complete or self._part.exists()):
            return
        before = read_json(path) if path.exists() else {}
        # A setting that an earlier version did not know had no value then; a digest it did not take
        # is not known.
        keys = before.keys() | settings.keys() - (DIGESTS - before.keys())
        changed = [key for key in keys if (before.get(key) or None) != (settings.get(key) or None)]
        if changed:
            changes = ", ".join(
                f"{key} ({before.get(key)!r}, now {settings.get(key)!r})" for key in sorted(changed)
            )
            raise ValueError(
                f"{self.path if self.complete else self._part} was made with other settings: "
                f"{changes}; give another --save_suffix, or delete the file"
            )

    def _read_part(self) -> Iterator[tuple[int, int, int]]:
        """Index of every finished row, and the first byte and the bytes of the row itself.

        A killed run may leave an unfinished last line, which is cut off: its row is made again.
        """
        if not self._part.exists():
            return
        start = 0
        with self._part.open("r+b", buffering=BUFFER) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    logger.info(
                        "%s: the last row was not written to its end and is made again", self._part
                    )
                    file.truncate(start)
                    return
                index, row = parse_json(line.decode("utf-8"), self._part, number)
                if row.get("responses") and is_unanswered(row["responses"][0]):
                    self._unanswered[index] = str(row["id"])
                begin = _PLACE.match(line).end()
                yield index, start + begin, len(line) - begin - len("]\n")
                start += len(line)


# settings that say which model answered
MODEL = ("model_dir", "model_digest", "lora", "lora_digest", "api_model")
PROMPT_THINKING = ("open", "closed", "unknown")  # see `generation.rendering`
# Keys of a row of a generation file and of its responses, with their types. Several golds are a
# list.
GENERATION = {"id": (str, int), "problem": str, "answer": (str, list), "responses": list}
RESPONSE = {"text": str, "num_tokens": int, "finish_reason": str}
MOST_TOKENS = 1 << 40  # no count of tokens is larger
# finish_reason of a missing response: its prompt alone fills the context; or it was refused,
# by the model's template, the engine or the server, and `cause` says why
NO_ROOM, REFUSED = "no_room", "refused"


def is_unanswered(response: Row) -> bool:
    """Whether there is no response: it was not asked for, or was refused."""
    return response["finish_reason"] in (NO_ROOM, REFUSED)


def sample_seed(seed: int, row_id: str, sample: int) -> int:
    """Sampling seed in 0..2^31-1 of one response: the same for any other rows, in any order."""
    digest = hashlib.blake2b(f"{seed}/{row_id}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def read_generations(
    path: str | Path,
    columns: Columns | None = None,
    remedy: str = "",
    *,
    single: bool = False,
    look: Callable[[Row], None] = lambda row: None,
) -> Rows:
    """Rows of a file written by `generation.generate`, each read when it is asked for.

    Each has `id`, `problem`, `answer`, `responses` (a list of `text`, `num_tokens`,
    `finish_reason`) and all columns of its input.

    Args:
        path: file.
        columns: further columns that rows must have, and their types; `remedy` says what to do
            if they have not.
        single: refuse rows with several responses.
        look: called with every row, for what is to be known of all before any is worked on.

    Raises ValueError naming the file, and the row if one is at fault.
    """
    first: dict[str, int] = {}

    def check(row: Row, i: int) -> None:
        _check_generation(row, i, path)
        check_id(row, i, path, first)
        check_row(row, i, columns or {}, path, remedy)
        check_edited(row, f"{path}: row {i}")
        if single and (number := len(row["responses"])) != 1:
            raise ValueError(
                f"{path}: row {i} has {number} responses, but only one would be read; "
                "generate it with n_generate_sample 1"
            )
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
            f"{path}: row {i} has the 'answer' {short_json(row['answer'])}; write it as a text"
        )
    check_row(row, i, GENERATION, path, "generate it again")
    for response in row["responses"]:
        _check_response(response, f"{path}: row {i}")


def _check_response(response: Any, place: str) -> None:
    """Raise ValueError unless a response is what `generation.generate` writes."""
    if not isinstance(response, dict):
        raise ValueError(f"{place} has the response {short_json(response)}; generate it again")
    if missing := RESPONSE.keys() - response.keys():
        raise ValueError(f"{place} has a response without {sorted(missing)}; generate it again")
    for key, kind in RESPONSE.items():
        if not is_a(response[key], kind):
            raise ValueError(
                f"{place} has a response with the {key} {short_json(response[key])}; generate it "
                "again"
            )
    if not 0 <= response["num_tokens"] <= MOST_TOKENS:
        raise ValueError(
            f"{place} has a response of {short_json(response['num_tokens'])} tokens; generate it "
            "again"
        )
    if response.get("prompt_thinking", "unknown") not in PROMPT_THINKING:
        given = short_json(response["prompt_thinking"])
        raise ValueError(
            f"{place} has the prompt_thinking {given}; it must be {', '.join(PROMPT_THINKING)}, or "
            "missing"
        )
    try:
        known_markers(response)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; generate it again") from error
