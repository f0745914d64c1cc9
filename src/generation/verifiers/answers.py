"""Parts of a response that a verifier reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from generation.markers import known_markers
from generation.math_verify.extract import extract_answer
from generation.rendering import after_thinking

Row = Mapping[str, Any]
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|textrm|mathbf)\s*\{([^{}]*)\}")


def answer_part(response: str, row: Row) -> str:
    """Text of a response after its thinking; empty if that never ended.

    Args:
        response: whole text.
        row: that of the same place, which says in `prompt_thinking` if the prompt had opened it.

    >>> answer_part("Is it 3? No.</think> It is 4.", {"prompt_thinking": "open"})
    ' It is 4.'
    """
    known = {key: row[key] for key in ("prompt_thinking", "markers") if key in row}
    return after_thinking({"text": response, **known})


def final_answer(response: str, row: Row) -> str:
    r"""Content of the last `\boxed{}` after the thinking, or the line after a marker of
    `answer_markers`, or all of the answer part; empty if there is none.

    >>> final_answer("</think>So it is \\boxed{\\text{a red fox}}.", {})
    'a red fox'
    """
    part = answer_part(response, row)
    found = extract_answer(part, row.get("answer_markers", ()), "closed")
    markers = known_markers(row)
    heading = markers.forced_answer.rpartition(markers.think_end)[2].strip()  # of a revision
    text = part.strip().removeprefix(heading).strip() if found is None else found
    return _TEXT.sub(r"\1", text).strip()
