"""Cut a response after any of its paragraphs, from one encoding of it; work for many processes,
which import this module."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from generation.cuts import PathCuts
from generation.identity import check_same, identity
from generation.markers import known_markers
from generation.parallel import BATCH_BYTES, Shared
from generation.rendering import known_thinking
from generation.segments import Paragraph, split_paragraphs, token_counter
from generation.stages import path_rows
from rea_core.row_files import Row, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cut_row(
    row: Row,
    response: Row,
    paragraphs: Sequence[Paragraph],
    last_kept: int | None,
    tokenizer: PreTrainedTokenizerBase,
    cuts: PathCuts | None = None,
) -> Row:
    """Row that split `math_cot` finishes.

    Columns next to the response's own: `prefix` (None if all is kept, with its own `responses`),
    `cut` (the last kept paragraph), `num_paragraphs`, `kept` (share of the thinking's tokens) and
    `truncated` (no end of its thinking). `cuts` are those of the response, if it is cut several
    times.
    """
    ended = known_thinking(response) == "closed" or (
        known_markers(response).think_end in response["text"]
    )
    columns = {"num_paragraphs": len(paragraphs), "truncated": not ended}
    if last_kept is None or last_kept + 1 >= len(paragraphs):
        return {**row, **columns, "cut": None, "kept": 1.0, "prefix": None, "responses": [response]}
    cuts = cuts or PathCuts(response["text"], tokenizer, known_markers(response))
    prefix, kept = cuts.after(paragraphs[last_kept].end)
    return {**row, **columns, "cut": last_kept, "kept": kept, "prefix": prefix}


@dataclass(frozen=True)
class Splitting:
    """How responses are split into paragraphs; it is called in each process, for its tokenizer."""

    tokenizer: Shared | PreTrainedTokenizerBase
    min_tokens: int
    max_tokens: int

    def __call__(self) -> Splitting:
        return Splitting(self.tokenizer(), self.min_tokens, self.max_tokens)

    def paragraphs(self, response: Row) -> list[Paragraph]:
        """Paragraphs of a response."""
        think_end = known_markers(response).think_end
        return split_paragraphs(
            response["text"],
            token_counter([response["text"]], self.tokenizer, think_end),
            min_tokens=self.min_tokens,
            max_tokens=self.max_tokens,
            prompt_thinking=known_thinking(response),
            think_end=think_end,
        )


@dataclass(frozen=True)
class SplitPath:
    """A response by its id, with tokens and end of each paragraph; its text is left in the file."""

    id: str
    tokens: Sequence[int]
    ends: Sequence[int] = ()

    def share(self, last_kept: int) -> float:
        """Share of the thinking's tokens up to a paragraph."""
        return sum(self.tokens[: last_kept + 1]) / sum(self.tokens)

    def nearest_cut(self, share: float) -> int:
        """Last kept paragraph such that the share of kept tokens is nearest to `share`; the
        earlier one of equals."""
        return int(self.nearest_cuts([share])[0])

    def nearest_cuts(self, shares: Sequence[float]) -> np.ndarray:
        """The same for several shares (S,)."""
        reached = np.cumsum(self.tokens) / sum(self.tokens)  # (paragraphs,)
        return np.abs(reached[:, None] - np.asarray(shares)).argmin(axis=0)

    @property
    def paragraphs(self) -> list[Paragraph]:
        """Paragraphs without their texts."""
        pairs = zip(self.tokens, self.ends, strict=True)
        return [Paragraph("", tokens, (end,)) for tokens, end in pairs]


@dataclass(frozen=True)
class Labelled:
    """Some rows of a generation file, with the labels or cuts of their labelled responses."""

    rows: Rows
    known: Mapping[str, object]

    def paths(self) -> Iterable[tuple[Row, Row]]:
        """(columns, response) of the labelled responses."""
        return (
            (row, response) for row, response in path_rows(self.rows) if row["id"] in self.known
        )


def split_labelled(splitting: Splitting, labelled: Labelled) -> list[SplitPath]:
    """Labelled responses, split. `known` are places of their labels, which must be about the same
    response and the same paragraphs, if they have any."""
    found = []
    for row, response in labelled.paths():
        paragraphs, label = splitting.paragraphs(response), labelled.known[row["id"]]
        labels, place = label[0], f"{row['id']!r} of {labelled.rows.path}"
        check_same(label.place, identity(labels), place, identity(row, response))
        if "paragraphs" in labels:  # cuts of a judge, which were compared before, have none
            check_paragraphs(row["id"], paragraphs, labels["paragraphs"])
        tokens = array("I", [p.num_tokens for p in paragraphs])
        ends = array("I", [p.end for p in paragraphs])
        found.append(SplitPath(row["id"], tokens, ends))
    return found


def check_paragraphs(path_id: str, paragraphs: list[Paragraph], labelled: list[str]) -> None:
    """Raise ValueError if a response has other paragraphs than those that were labelled."""
    if [paragraph.text for paragraph in paragraphs] != labelled:
        raise ValueError(
            f"paths: {path_id} has other paragraphs than its labels; give the responses that were "
            "labelled, and the same paragraph_tokenizer, paragraph_min_tokens and "
            "paragraph_max_tokens"
        )


class Wanted(NamedTuple):
    """A cut that is wanted: the last kept paragraph, and columns before and after `cut_row`'s."""

    last_kept: int
    before: Row
    after: Row


def cut_labelled(tokenizer: PreTrainedTokenizerBase, labelled: Labelled) -> list[list[bytes]]:
    """Rows, as JSON, of all cuts of each response; `known` are responses, split, and their cuts."""
    found = []
    for row, response in labelled.paths():
        path, wanted = labelled.known[row["id"]]
        paragraphs = path.paragraphs
        is_cut = any(cut.last_kept + 1 < len(paragraphs) for cut in wanted)
        markers = known_markers(response)
        cuts = PathCuts(response["text"], tokenizer, markers) if is_cut else None
        found.append(
            [
                to_json(
                    {
                        **cut_row({**row, **before}, response, paragraphs, last, tokenizer, cuts),
                        **after,
                    }
                )
                for last, before, after in wanted
            ]
        )
    return found


def labelled_batches(
    rows: Rows,
    path_ids: Sequence[Sequence[str]],
    places: Mapping[str, int],
    about: Callable[[int], object],
) -> Iterator[Labelled]:
    """All rows in batches, with the labels or cuts of their labelled responses.

    Args:
        rows: of a generation file.
        path_ids: ids of the responses of each row.
        places: numbers of the labelled responses by their ids.
        about: makes labels or cuts of a response, by its number.
    """
    start = 0
    for batch in rows.batches(BATCH_BYTES):
        ids = (path for row_ids in path_ids[start : start + len(batch)] for path in row_ids)
        yield Labelled(batch, {path: about(places[path]) for path in ids if path in places})
        start += len(batch)


def to_json(row: Row) -> bytes:
    """A row as files have it."""
    return json.dumps(row, ensure_ascii=False).encode()
