"""Parts of a response that a verifier reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from generation.math_verify.extract import extract_answer
from generation.prompts import FORCED_ANSWER, THINK_END
from generation.rendering import after_thinking

Row = Mapping[str, Any]
FINAL_ANSWER = FORCED_ANSWER.rpartition(THINK_END)[2].strip()  # heading of a revision's answer
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|textrm|mathbf)\s*\{([^{}]*)\}")


def answer_part(response: str, row: Row) -> str:
    """Text of a response after its thinking; empty if that never ended.

    Args:
        response: whole text.
        row: that of the same place, which says in `prompt_thinking` if the prompt had opened it.

    >>> answer_part("Is it 3? No.</think> It is 4.", {"prompt_thinking": "open"})
    ' It is 4.'
    """
    thinking = row.get("prompt_thinking", "unknown")
    return after_thinking({"text": response, "prompt_thinking": thinking})


def final_answer(response: str, row: Row) -> str:
    r"""Content of the last `\boxed{}` after the thinking, or the line after a marker of
    `answer_markers`, or all of the answer part; empty if there is none.

    >>> final_answer("</think>So it is \\boxed{\\text{a red fox}}.", {})
    'a red fox'
    """
    part = answer_part(response, row)
    found = extract_answer(part, row.get("answer_markers", ()), "closed")
    text = part.strip().removeprefix(FINAL_ANSWER).strip() if found is None else found
    return _TEXT.sub(r"\1", text).strip()
