"""Rows that get no answer while others do: each is kept without a text, counted and named.

A prompt is too long, the model's template does not take its messages, or a server or an engine
refuses it. The run continues. It ends if many rows in a row are refused, or all of them: then the
cause is most likely none of these rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from generation.generation_file import NO_ROOM, REFUSED
from rea_core.row_files import Row

if TYPE_CHECKING:
    from generation.arguments import GenerateArguments

logger = logging.getLogger(__name__)

MOST_NAMED = 10  # rows in a line of the log


def without_answer(args: GenerateArguments, end: str, cause: str) -> list[Row]:
    """Responses to a row that gets none; `end` is `no_room` or `refused`, `cause` for the log."""
    response = {"text": "", "num_tokens": 0, "finish_reason": end, "cause": cause}
    return [response if args.api else {**response, "logprobs": []}] * args.n_generate_sample


class Unanswered:
    """The rows of a run that get no answer.

    Those that are refused wait until another row is answered, so that a run that was refused as a
    whole leaves nothing behind.

    Args:
        args: of the command.
        keep: keeps the responses to a task, by its index.
        has_answered: whether rows were answered in a run before.
    """

    def __init__(
        self,
        args: GenerateArguments,
        keep: Callable[[int, list[Row]], None],
        has_answered: bool,
    ):
        self._args, self._keep, self._has_answered = args, keep, has_answered
        self._waiting: list[tuple[int, list[Row]]] = []
        self._indices: set[int] = set()
        # by end: ids of rows, and the cause of the first
        self._ids: dict[str, list[str]] = {NO_ROOM: [], REFUSED: []}
        self._causes: dict[str, str] = {}

    def leave(self, index: int, row_id: str, responses: list[Row]) -> None:
        """Take a row without an answer. Raises the run's error after `max_unanswered` in a row."""
        end, cause = responses[0]["finish_reason"], responses[0]["cause"]
        logger.info("row %r is unanswered: %.300s", row_id, cause)
        self._ids[end].append(row_id)
        self._causes.setdefault(end, cause)
        self._indices.add(index)
        self._waiting.append((index, responses))
        if (number := self._in_a_row(index)) > self._args.max_unanswered:
            raise self._error(f"{number} rows in a row (max_unanswered) get no answer", cause)

    def answered(self) -> None:
        """Another row was answered."""
        self._has_answered = True
        for index, responses in self._waiting:
            # the cause of a row without room is told by its end
            known = responses[0]["finish_reason"] == NO_ROOM
            kept = [{k: v for k, v in r.items() if k != "cause" or not known} for r in responses]
            self._keep(index, kept)
        self._waiting.clear()

    def close(self) -> None:
        """Keep and count the rest. Raises the run's error if rows were refused, and none was
        answered.

        A prompt that is known to be too long for an engine was not refused.
        """
        for end, ids in self._ids.items():
            if ids and (refused := end == REFUSED or self._args.api) and not self._has_answered:
                raise self._error("no row gets an answer", self._causes[end])
            if ids:
                logger.warning(
                    "%s: %d %s and count as unanswered: %s; the first: %.300s",
                    *(self._args.qaf, len(ids)),
                    "rows are refused" if refused else "prompts leave no room",
                    *(named(ids), self._causes[end]),
                )
        self.answered()

    def _in_a_row(self, index: int) -> int:
        """Rows without an answer around one, next to each other in the input."""
        first, last = index, index
        while first - 1 in self._indices:
            first -= 1
        while last + 1 in self._indices:
            last += 1
        return last - first + 1

    def _error(self, what: str, cause: str) -> Exception:
        text = f"{what}: {cause}"
        return ConnectionError(text) if self._args.api else ValueError(text)


def named(ids: list[str]) -> str:
    """The first ids of a list, for a line of the log."""
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return ", ".join(map(str, ids[:MOST_NAMED])) + more
