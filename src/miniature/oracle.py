"""The miniature's oracle: what a flawless judge says about a response. It is used where the paper
uses Qwen2.5-32B-Instruct."""

from __future__ import annotations

import re

from generation.stated_results import stated_result

_BOXED = re.compile(r"\\boxed\{(\d+)\}")


def boxed_answer(answer: str) -> int | None:
    """The number in the last box of the text after the thinking, or None."""
    found = _BOXED.findall(answer)
    return int(found[-1]) if found else None


def judge_reply(paragraphs: list[str], answer: int, first: int = 1) -> str:
    """The reply of the judge for one chunk of parts, numbered from `first` on."""
    blocks = []
    for number, paragraph in enumerate(paragraphs, first):
        result = stated_result(paragraph)
        if result is None:
            blocks.append(f"[{number}]. Think: This part states no result.\nLabel: Reasoning")
        else:
            label = "Right Result" if result == answer else "Wrong Result"
            blocks.append(
                f"[{number}]. Think: This part states the result {result}.\nLabel: {label}"
            )
    return "\n\n".join(blocks)


def confirm_reply(paragraph: str, answer: int) -> str:
    """The reply of the second judgement: does this part really reach the right result?"""
    return "Yes" if stated_result(paragraph) == answer else "No"
