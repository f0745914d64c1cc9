"""The stages of `generation.generate`: which rows each of them reads, and what it asks the model.

    math_cot                   problems: solve them; a row with a `prefix` is continued
    labeling                   responses: one label a paragraph, by the reflection model
    labeling_distill           responses: one label a paragraph, by the judge
    labeling_distill_use_asw   the same, and the judge is told the gold answer
    json                       rows that have their `messages`, such as candidates for the judge's
                               second judgement

Responses are those of a file of split math_cot. Response k of problem p has the `id` `p/k`,
the `problem_id` p and the number `path` k; chunk c of a response has the `id` `p/k/c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from generation.generation_file import read_generations
from generation.identity import path_digest
from generation.markers import KEYS as MARKER_KEYS
from generation.markers import known_markers
from generation.prompts import REFLECTION_PREFILLS, Messages, judge_messages, reflection_messages
from generation.provenance import differences
from generation.rendering import known_thinking, thinking_in
from generation.segments import (
    Paragraph,
    chunk_paragraphs,
    split_paragraphs,
    token_counter,
)
from rea_core.checks import is_dialogue
from rea_core.problems import open_problems
from rea_core.row_files import AnyRows, Row, Rows
from rea_core.rows import any_rows, check_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from generation.arguments import GenerateArguments


@dataclass(frozen=True)
class Prompt:
    """The request for one row of the output."""

    row: Row  # the output's columns, without `responses`; its `id` is unique
    messages: Messages
    prefill: str = ""  # begin of the reply, from which the model continues
    responses: list[Row] | None = None  # a response without a cut: nothing is asked


@dataclass(frozen=True)
class Split:
    """A stage: `open` returns its checked rows, and `prompts` makes those of a row, with the
    tokenizer that counts the tokens of paragraphs."""

    open: Callable[[GenerateArguments], AnyRows]
    prompts: Callable[[GenerateArguments, Row, PreTrainedTokenizerBase | None], Iterable[Prompt]]


def _open_problems(args: GenerateArguments) -> AnyRows:
    rows = open_problems(
        args.qaf,
        args.qaf_split,
        config=args.dataset_config,
        problem_column=args.problem_column,
        answer_column=args.answer_column,
        gold_needed=False,
        check=partial(_check_begun, args),
    )
    return rows[: args.qaf_limit]


def _check_begun(args: GenerateArguments, row: Row, _: int) -> None:
    """Raise ValueError for a response that was begun, if it cannot be finished as asked."""
    if "prefix" not in row:
        return
    begun = row.get("prompt_format") or {}
    # not given: those of the model, which has begun it
    markers = {key: begun[key] for key in MARKER_KEYS if key in begun}
    asked = markers | args.prompt_format.record
    if differs := differences({"prompt_format": begun}, {"prompt_format": asked}):
        raise ValueError(
            f"{args.qaf}: row {row['id']!r} was begun with another prompt than it is to be "
            f"finished with: {differs}; give the settings that its response was sampled with"
        )
    if args.api and row["prefix"]:
        raise ValueError(
            f"{args.qaf}: rows with a prefix continue from a begun reply, which api cannot; leave "
            "it out"
        )


def math_cot(
    args: GenerateArguments, row: Row, _: PreTrainedTokenizerBase | None = None
) -> list[Prompt]:
    """Solve the problem, with the prompt of training. Rows with a `prefix` continue from it; null
    passes them on."""
    messages = args.prompt_format.messages(row["problem"])
    if "prefix" not in row:
        return [Prompt(row, messages)]
    columns = {key: value for key, value in row.items() if key not in ("prefix", "responses")}
    if row["prefix"] is None:
        return [Prompt(columns, messages, responses=row["responses"])]
    return [Prompt(columns, messages, prefill=row["prefix"])]


def labeling(
    args: GenerateArguments, row: Row, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Prompt]:
    """Labels of the reflection model, in exactly the format of training and of the rollouts."""
    form = args.reply_form
    for columns, paragraphs in _paths(args, row, tokenizer):
        texts = [paragraph.text for paragraph in paragraphs]
        messages = reflection_messages(row["problem"], texts, form)
        prefill = REFLECTION_PREFILLS[form]
        yield Prompt({**columns, "paragraphs": texts}, messages, prefill=prefill)


def labeling_distill(
    args: GenerateArguments, row: Row, tokenizer: PreTrainedTokenizerBase, use_answer: bool = False
) -> Iterator[Prompt]:
    """Labels of the judge, which has to find the results by itself, or compares with the gold
    answer: one row per chunk of a response."""
    for path, paragraphs in _paths(args, row, tokenizer):
        chunks = chunk_paragraphs(
            [paragraph.num_tokens for paragraph in paragraphs], args.chunk_tokens
        )
        for number, chunk in enumerate(chunks):
            texts = [paragraphs[i].text for i in chunk]
            columns = {
                "id": f"{path['id']}/{number}",
                "chunk": number,
                "use_answer": use_answer,
                "paragraphs": texts,
            }
            messages = judge_messages(row["problem"], texts, row["answer"] if use_answer else None)
            yield Prompt({**path, **columns}, messages)


def _open_messages(args: GenerateArguments) -> AnyRows:
    first: dict[str, int] = {}

    def check(row: Row, i: int) -> None:
        if not row.get("messages") or "id" not in row:
            raise ValueError(
                f"{args.qaf}: row {i} needs an 'id' and its 'messages', but has {sorted(row)}"
            )
        if not is_dialogue(row["messages"]):
            raise ValueError(
                f"{args.qaf}: row {i} has the 'messages' {str(row['messages'])[:60]!r}; write a "
                "list of messages, each with a 'role' and a text as its 'content'"
            )
        check_id(row, i, args.qaf, first)

    return any_rows(args.qaf, args.qaf_split, args.dataset_config, check)[: args.qaf_limit]


def json(_: GenerateArguments, row: Row, __: PreTrainedTokenizerBase | None = None) -> list[Prompt]:
    """The question of the row's `messages`."""
    return [Prompt({key: v for key, v in row.items() if key != "messages"}, row["messages"])]


def path_rows(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """(columns, response) of every response of a generation file."""
    for row in rows:
        columns = {key: value for key, value in row.items() if key != "responses"}
        for k, response in enumerate(row["responses"]):
            place = {"id": f"{row['id']}/{k}", "problem_id": row["id"], "path": k}
            yield {**columns, **place, "path_digest": path_digest(response)}, response


def _open_paths(args: GenerateArguments) -> Rows:
    """Rows with responses. Raises ValueError if none of them has a thinking."""
    found = 0

    def look(row: Row) -> None:
        nonlocal found
        found += any(thinking_in(response).strip() for response in row["responses"])

    rows = read_generations(args.qaf, look=look)[: args.qaf_limit]
    if not found:
        raise ValueError(
            f"{args.qaf}: none of its responses has a thinking to label; sample them with thinking"
        )
    return rows


def _paths(
    args: GenerateArguments, row: Row, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Row, list[Paragraph]]]:
    """Responses that have a thinking, with its paragraphs."""
    think_end = known_markers(row["responses"][0]).think_end  # one model wrote all of a file
    texts = (response["text"] for response in row["responses"])
    count_tokens = token_counter(texts, tokenizer, think_end)
    for columns, response in path_rows([row]):
        paragraphs = split_paragraphs(
            response["text"],
            count_tokens,
            min_tokens=args.paragraph_min_tokens,
            max_tokens=args.paragraph_max_tokens,
            prompt_thinking=known_thinking(response),
            think_end=think_end,
        )
        if paragraphs:
            yield columns, paragraphs


SPLITS: dict[str, Split] = {
    "math_cot": Split(_open_problems, math_cot),
    "json": Split(_open_messages, json),
    "labeling": Split(_open_paths, labeling),
    "labeling_distill": Split(_open_paths, labeling_distill),
    "labeling_distill_use_asw": Split(_open_paths, partial(labeling_distill, use_answer=True)),
}
