"""Counts of every response of a generation file; work for many processes, which import
this module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from generation.generation_file import NO_ROOM
from generation.markers import known_markers
from generation.parallel import Shared, map_rows
from generation.reflection_words import count_reflections
from generation.rendering import after_thinking, answer_of, known_thinking, thinking_in
from generation.scoring import ScoredResponse
from generation.segments import num_tokens
from generation.verifiers.opening import AnyPool
from generation.verifiers.pool import Asked, FunctionPool, facts_of
from rea_core.golds import as_list
from rea_core.problems import problem_digest
from rea_core.row_files import Row, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_ASKED = 256  # whole responses that wait for their verdicts
Judged = str | Asked | None  # an extracted answer, or a whole response
HEAD = ("id", "problem_id", "answer", "level", "benchmark", "prompt_format", "answered_by")


def head_of(row: Row) -> Row:
    """A row's columns that are kept of every row."""
    head = {key: row[key] for key in HEAD if key in row}
    return head | {"problem_digest": problem_digest(row["problem"])}


@dataclass(frozen=True)
class Counting:
    """Settings of a process that counts responses; it is called there, for its tokenizer.

    Args:
        tokenizer: counts thinking tokens, those before the end of the thinking; there are none
            after a prompt that has closed it.
        budgets: tokens that responses are cut to, one after the other; None leaves them as they
            are.
        word_bounded: count whole reflection words only.
        slips: read the first stated result of each thinking, which the miniature's oracle knows how
            to do.
        prompt_thinking: what the prompts did to the thinking of responses that do not say it.
        whole: the verifier is a function, which reads whole responses and all columns.
    """

    tokenizer: Shared | PreTrainedTokenizerBase
    budgets: Sequence[int | None] = (None,)
    word_bounded: bool = False
    slips: bool = False
    prompt_thinking: str = "unknown"
    whole: bool = False

    def __call__(self) -> Counting:
        return replace(self, tokenizer=self.tokenizer())


@dataclass(frozen=True, slots=True)
class CountedRow:
    """A row of a generation file without its texts, and counts of each response by budget."""

    head: Row
    # (budgets, responses): what is judged, and counts without verdict
    responses: list[list[tuple[Judged, ScoredResponse]]]
    facts: str = ""  # of its problem, for a verifier that is a function


def count_rows(counting: Counting, rows: Iterable[Row]) -> list[CountedRow]:
    """Counts of every response; texts are encoded together and let go."""
    rows = list(rows)
    views = [
        [within_budgets(r, counting.budgets, counting.tokenizer) for r in row["responses"]]
        for row in rows
    ]  # by row, response and budget
    responses = [
        {"prompt_thinking": counting.prompt_thinking, **r}
        for row in views
        for cuts in row
        for r in cuts
    ]
    thinkings = [thinking_in(r).removeprefix(known_markers(r).think_start) for r in responses]
    tokens = num_tokens(thinkings, counting.tokenizer)
    counted = iter(zip(responses, thinkings, tokens, strict=True))
    result = []
    for row, view in zip(rows, views, strict=True):
        found = [[_count(counting, row, *next(counted)) for _ in cuts] for cuts in view]
        columns = [list(column) for column in zip(*found, strict=True)]
        result.append(CountedRow(head_of(row), columns, facts_of(row) if counting.whole else ""))
    return result


def _count(
    counting: Counting, row: Row, response: Row, thinking: str, tokens: int
) -> tuple[Judged, ScoredResponse]:
    answer = after_thinking(response).strip() or None if counting.whole else answer_of(response)
    judged = _asked(response) if counting.whole else answer
    return judged, ScoredResponse(
        correct=False,
        num_tokens=response["num_tokens"],
        num_think_tokens=tokens,
        num_reflections=count_reflections(thinking, counting.word_bounded),
        truncated=response["finish_reason"] == "length",
        answered=answer is not None,
        no_room=response["finish_reason"] == NO_ROOM,
        first_right=_first_right(thinking, *as_list(row["answer"])) if counting.slips else None,
    )


def _asked(response: Row) -> Asked:
    return Asked(response["text"], known_thinking(response), response.get("markers"))


def within_budgets(
    response: Row, budgets: Sequence[int | None], tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """A response as if it had been allowed no more tokens than each budget; None leaves it as it
    is.

    A longer response keeps the first `budget` tokens of its text and counts as truncated. It is
    encoded once.
    """
    whole = {key: value for key, value in response.items() if key != "logprobs"}
    is_longer = [budget is not None and response["num_tokens"] > budget for budget in budgets]
    ids = tokenizer.encode(response["text"], add_special_tokens=False) if any(is_longer) else []
    return [
        {
            **whole,
            "text": tokenizer.decode(ids[:budget]),
            "num_tokens": budget,
            "finish_reason": "length",
        }
        if cut
        else whole
        for budget, cut in zip(budgets, is_longer, strict=True)
    ]


def _first_right(thinking: str, answer: str) -> bool:
    from generation.stated_results import stated_results

    results = stated_results(thinking)
    return bool(results) and results[0][1] == int(answer)


def answers_of(_: None, rows: Iterable[Row]) -> list[list[str | None]]:
    """Answers in the responses of each row."""
    return [[answer_of(response) for response in row["responses"]] for row in rows]


def first_verdicts(rows: Rows, pool: AnyPool, num_workers: int | None) -> list[bool]:
    """Whether the first response of each row is right; few whole responses are held at a time."""
    verdicts: list[Future[bool]] = []
    if isinstance(pool, FunctionPool):
        for row in rows:
            verdicts.append(pool.submit(facts_of(row), _asked(row["responses"][0])))
            if len(verdicts) > MOST_ASKED:
                verdicts[-MOST_ASKED].result()
        return [verdict.result() for verdict in verdicts]
    golds = (row["answer"] for row in rows)
    answers = map_rows(answers_of, rows, Shared(None), num_workers, progress="answers")
    for gold, (answer, *_) in zip(golds, answers, strict=True):
        verdicts.append(pool.submit(gold, answer))
    return [verdict.result() for verdict in verdicts]
