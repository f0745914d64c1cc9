"""Rows of dialogues, in TRL's conversational formats, as a prompt and the one turn that is trained
after it.

    prompt, completion            a completion may repeat the prompt before its one turn
    messages                      the last turn is the completion, the others are the prompt
    prompt, chosen, rejected      so may chosen and rejected
    chosen, rejected              what both begin with is the prompt

The trained turn is an assistant's. Its text is trained as it is, not as the model's
template would write it: R1's leaves out the thinking.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rea_core.checks import is_dialogue
from rea_core.row_files import Row

Messages = list[dict[str, Any]]
# Keys of a turn that would silently not be trained.
UNTRAINED = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def split_row(row: Row, completions: Sequence[str]) -> Row:
    """Row with a `prompt`, text or messages, and completions that are texts or one assistant's turn
    each.

    Args:
        row: in one of the formats above; columns that are texts stay as they are.
        completions: columns that are trained, `completion`, or `chosen` and `rejected`.

    Raises ValueError if it is not clear what the prompt and the trained turn are.
    """
    if "completion" in completions and "completion" not in row and is_dialogue(row.get("messages")):
        row = {**row, "prompt": None, "completion": row["messages"]}
    dialogues = {column: row[column] for column in completions if is_dialogue(row.get(column))}
    if dialogues:
        prompt = (
            row["prompt"]
            if is_dialogue(row.get("prompt"))
            else _shared_beginning(row.get("prompt"), dialogues)
        )
        turns = {column: _after(prompt, messages) for column, messages in dialogues.items()}
        for column, messages in turns.items():
            _check_turn(column, messages)
        row = {**row, "prompt": prompt or row.get("prompt"), **turns}
    if is_dialogue(row.get("prompt")) and row["prompt"][-1]["role"] == "assistant":
        raise ValueError(
            "the 'prompt' ends with a turn of the assistant, who cannot have two in a row; join "
            "them"
        )
    return row


def _shared_beginning(prompt: str | None, dialogues: dict[str, Messages]) -> Messages:
    """Common beginning of all dialogues. A prompt given as a text must be part of it."""
    # Two dialogues may be equal: the last turn of the shorter one is none of the beginning.
    longest = min(len(messages) for messages in dialogues.values()) - 1
    shared = os.path.commonprefix([_texts(messages[:longest]) for messages in dialogues.values()])
    beginning = next(iter(dialogues.values()))[: len(shared)]
    if (
        prompt
        and beginning
        and not any(str(prompt).strip() in message["content"] for message in beginning)
    ):
        raise ValueError(
            f"the 'prompt' {str(prompt)[:60]!r} is not in what "
            f"{' and '.join(map(repr, dialogues))} begin with; leave one out"
        )
    return beginning


def _after(prompt: Messages, messages: Messages) -> Messages:
    """Turns of a dialogue after its prompt, whether it repeats that or not."""
    repeats = _texts(messages[: len(prompt)]) == _texts(prompt)
    return messages[len(prompt) :] if repeats else messages


def _texts(messages: Messages) -> list[tuple[str, str]]:
    return [(str(message["role"]), message["content"]) for message in messages]


def _check_turn(column: str, messages: Messages) -> None:
    """Raise ValueError unless a completion is one turn of the assistant."""
    roles = [str(message["role"]) for message in messages]
    if len(messages) != 1:
        raise ValueError(
            f"{column!r} has {len(messages)} turns ({', '.join(roles)}) after its prompt, but one "
            "is trained: put the others into the prompt, or make several rows"
        )
    if roles != ["assistant"]:
        raise ValueError(
            f"{column!r} ends with a turn of {roles[0]!r}, but the assistant's are trained; drop "
            "the row"
        )
    if lost := [key for key in UNTRAINED if messages[0].get(key)]:
        raise ValueError(
            f"{column!r} has {lost[0]!r}, which is not trained; write it into the 'content', or "
            "drop the row"
        )
