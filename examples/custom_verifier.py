"""A verifier of your own: a number is right if it is within one percent of the gold one.

    RECIPE_SET=miniature NUM_GPUS=0 bash scripts/grpo.sh --max_steps 2 \\
        --output_dir output/own_verifier --verifier examples/custom_verifier.py:near

Scores take it as well: `python -m generation.math_verify_all FILE --verifier ...`.
"""

from __future__ import annotations

import math
import re
from typing import Any

from generation.verifiers import final_answer

TOLERANCE = 0.01


def near(responses: list[str], rows: list[dict[str, Any]]) -> list[bool]:
    r"""Whether the last number of each answer is near the gold one.

    Args:
        responses: whole texts, the thinking included.
        rows: columns of their problems, in the same order; `answer` is the gold one.

    >>> near(["Hm.</think>About \\boxed{3.15}."], [{"answer": "3.14"}])
    [True]
    """
    return [
        is_near(final_answer(response, row), float(row["answer"]))
        for response, row in zip(responses, rows, strict=True)
    ]


def is_near(answer: str, gold: float) -> bool:
    """Whether the last number of a text is near the gold one; False if it has none."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
    return bool(numbers) and math.isclose(float(numbers[-1]), gold, rel_tol=TOLERANCE)
