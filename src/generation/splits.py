"""The stages of `generation.generate`: which rows each of them reads, and what it asks the model.

    math_cot                   problems: solve them; a row with a `prefix` is a path to go on from
    labeling                   paths: one label a paragraph, by the reflection model
    labeling_distill           paths: one label a paragraph, by the judge
    labeling_distill_use_asw   the same, and the judge is told the gold answer
    json                       rows that have their `messages`, such as candidates for the judge's second judgement

Paths are the responses of a file that split math_cot wrote. Path k of problem p has the `id` `p/k`, the `problem_id` p
and the number `path` k; chunk c of a path has the `id` `p/k/c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generation.prompts import REFLECTION_PREFILL, judge_messages, reflection_messages
from generation.provenance import differences
from generation.rendering import known_thinking
from generation.segments import Paragraph, chunk_paragraphs, split_paragraphs
from generation.utils import Row, check_ids, read_generations, read_rows
from rea_rl.dialogues import is_dialogue
from rea_rl.utils import load_problems, load_tokenizer

if TYPE_CHECKING:
    from generation.generate import GenerateArguments

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """What is asked for one row of the output."""

    row: Row  # the output's columns beside `responses`; its `id` is unique
    messages: Messages
    prefill: str = ""  # begin of the reply, from which the model goes on
    responses: list[Row] | None = None  # a path of which nothing could be cut off: nothing is asked


def math_cot(args: GenerateArguments) -> list[Prompt]:
    """Solve the problem, with the prompt of training. Rows with a `prefix` go on from it; null passes them on."""
    rows = load_problems(
        args.qaf,
        args.qaf_split,
        problem_column=args.problem_column,
        answer_column=args.answer_column,
        gold_needed=False,
    )
    return [_solve(row, args) for row in rows[: args.qaf_limit]]


def _solve(row: Row, args: GenerateArguments) -> Prompt:
    messages = args.prompt_format.messages(row["problem"])
    if "prefix" not in row:
        return Prompt(row, messages)
    begun, asked = row.get("prompt_format") or {}, args.prompt_format.record
    if differs := differences({"prompt_format": begun}, {"prompt_format": asked}):
        raise ValueError(
            f"{args.qaf}: row {row['id']!r} was begun with another prompt than it is to be finished with: {differs}; give "
            "the settings that its path was sampled with"
        )
    columns = {key: value for key, value in row.items() if key not in ("prefix", "responses")}
    if row["prefix"] is None:
        return Prompt(columns, messages, responses=row["responses"])
    return Prompt(columns, messages, prefill=row["prefix"])


def labeling(args: GenerateArguments) -> list[Prompt]:
    """Labels of the reflection model, in exactly the format of training and of the rollouts."""
    return [
        Prompt({**row, "paragraphs": texts}, reflection_messages(row["problem"], texts), prefill=REFLECTION_PREFILL)
        for row, paragraphs in _paths(args)
        for texts in [[paragraph.text for paragraph in paragraphs]]
    ]


def labeling_distill(args: GenerateArguments) -> list[Prompt]:
    """Labels of the judge, which has to find the results by itself: one row per chunk of a path."""
    return _judged(args, use_answer=False)


def labeling_distill_use_asw(args: GenerateArguments) -> list[Prompt]:
    """Labels of the judge, which compares with the gold answer: one row per chunk of a path."""
    return _judged(args, use_answer=True)


def _judged(args: GenerateArguments, use_answer: bool) -> list[Prompt]:
    prompts = []
    for row, paragraphs in _paths(args):
        chunks = chunk_paragraphs([paragraph.num_tokens for paragraph in paragraphs], args.chunk_tokens)
        for number, chunk in enumerate(chunks):
            texts = [paragraphs[i].text for i in chunk]
            columns = {"id": f"{row['id']}/{number}", "chunk": number, "use_answer": use_answer, "paragraphs": texts}
            messages = judge_messages(row["problem"], texts, row["answer"] if use_answer else None)
            prompts.append(Prompt({**row, **columns}, messages))
    return prompts


def json(args: GenerateArguments) -> list[Prompt]:
    """Whatever the row's `messages` ask."""
    rows = read_rows(args.qaf, args.qaf_split)[: args.qaf_limit]
    for i, row in enumerate(rows):
        if not row.get("messages") or "id" not in row:
            raise ValueError(f"{args.qaf}: row {i} needs an 'id' and its 'messages', but has {sorted(row)}")
        if not is_dialogue(row["messages"]):
            raise ValueError(
                f"{args.qaf}: row {i} has the 'messages' {str(row['messages'])[:60]!r}; write a list of messages, each "
                "with a 'role' and a text as its 'content'"
            )
    check_ids(rows, args.qaf)
    return [Prompt({key: v for key, v in row.items() if key != "messages"}, row["messages"]) for row in rows]


def path_rows(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """(columns, response) of every path of a generation file."""
    for row in rows:
        columns = {key: value for key, value in row.items() if key != "responses"}
        for k, response in enumerate(row["responses"]):
            yield {**columns, "id": f"{row['id']}/{k}", "problem_id": row["id"], "path": k}, response


def _paths(args: GenerateArguments) -> Iterator[tuple[Row, list[Paragraph]]]:
    """Paths that have a thinking, with its paragraphs. Raises ValueError where none has."""
    tokenizer = load_tokenizer(args.paragraph_tokenizer, "paragraph_tokenizer")
    found = 0
    for row, response in path_rows(read_generations(args.qaf)[: args.qaf_limit]):
        paragraphs = split_paragraphs(
            response["text"],
            lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
            min_tokens=args.paragraph_min_tokens,
            max_tokens=args.paragraph_max_tokens,
            prompt_thinking=known_thinking(response),
        )
        if paragraphs:
            found += 1
            yield row, paragraphs
    if not found:
        raise ValueError(f"{args.qaf}: none of its paths has a thinking to label; sample them with thinking")


SPLITS: dict[str, Callable[[GenerateArguments], list[Prompt]]] = {
    split.__name__: split for split in (math_cot, json, labeling, labeling_distill, labeling_distill_use_asw)
}
LABELING_SPLITS = ("labeling", "labeling_distill", "labeling_distill_use_asw")
