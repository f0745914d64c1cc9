"""A verifier of your own: a response is right if it answers in JSON with the gold value.

    RECIPE_SET=miniature NUM_GPUS=0 bash scripts/grpo.sh --max_steps 2 \\
        --verifier examples/custom_verifier.py:json_answer

Scores take it as well: `python -m generation.math_verify_all FILE --verifier ...`.
"""

from __future__ import annotations

import json
from typing import Any

from generation.verifiers import answer_part


def json_answer(responses: list[str], rows: list[dict[str, Any]]) -> list[bool]:
    """Whether each response ends its thinking and then holds `{"answer": GOLD}`.

    Args:
        responses: whole texts, the thinking included.
        rows: columns of their problems, in the same order; `answer` is the gold one.

    >>> json_answer(['Hm.</think>It is {"answer": 4}.'], [{"answer": "4"}])
    [True]
    """
    return [
        stated(answer_part(response, row)) == row["answer"]
        for response, row in zip(responses, rows, strict=True)
    ]


def stated(text: str) -> str | None:
    """Value in the last JSON object of a text; None if there is none."""
    try:
        found = json.loads(text[text.rindex("{") : text.rindex("}") + 1])
    except ValueError:  # no braces, or no JSON between them
        return None
    return str(found.get("answer"))
