"""From a large judge's replies to confirmed results and to training examples of the reflection model."""

from __future__ import annotations

import re

from generation import prompts

# Judges decorate: `**[1].** Think: ...` and `**Label:** Right Result` are read like the plain form.
_PART_START = re.compile(r"^\**\[(\d+)\]\.", re.MULTILINE)
_LABEL = re.compile(r"\bLabel\b\W*\b(Reasoning|Right Result|Wrong Result|Result)\b", re.IGNORECASE)


def parse_judge_labels(response: str) -> dict[int, str]:
    """Labels of the parts `[i]. Think: ... / Label: ...` of a judge's reply, verbatim, by the number i.

    A reply in which any part has no label yields none at all: it is counted as unusable, not guessed.
    """
    _, *fields = _PART_START.split(response)
    labels = {}
    for number, body in zip(fields[::2], fields[1::2], strict=True):
        match = _LABEL.search(body)
        if match is None:
            return {}
        labels[int(number)] = match.group(1)
    return labels


def reflection_example(problem: str, paragraphs: list[str], is_result: list[bool]) -> dict[str, list[dict[str, str]]]:
    """Training example of the reflection model: a prompt-completion row in the format that is used online.

    `is_result` holds one confirmed verdict per paragraph; a different length raises ValueError.
    """
    if len(is_result) != len(paragraphs):
        raise ValueError(f"{len(paragraphs)} paragraphs but {len(is_result)} verdicts; give one verdict a paragraph")
    return {
        "prompt": prompts.reflection_messages(problem, paragraphs),
        "completion": [{"role": "assistant", "content": prompts.reflection_labels(is_result)}],
    }
