"""Find the final answer in a completion."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")  # \boxed{ and \fbox{
THINK_START, THINK_END = "<think>", "</think>"


def extract_answer(text: str, markers: Sequence[str] = ()) -> str | None:
    r"""Return the content of the last complete `\boxed{}` after the thinking, or None.

    An unclosed box is no answer (the text was cut off inside it), nor is an empty one, nor a box inside thinking that
    never ended. A text without thinking markers counts as answer throughout; of nested boxes the inner one counts.

    Args:
        text: Whole completion, or the answer part of one.
        markers: Further phrases that introduce an answer, such as `"The answer is"` or `"####"`. Where there is no
            complete box, the rest of the line after the last of them is the answer. None by default: a recipe asks
            for them.

    Example:
        >>> extract_answer("<think>It is \\boxed{1}.</think>So \\boxed{\\frac{1}{2}}.")
        '\\frac{1}{2}'
    """
    if THINK_END in text:
        text = text.rpartition(THINK_END)[2]
    elif THINK_START in text:
        return None
    for match in reversed(list(_BOX.finditer(text))):
        end = _closing_brace(text, match.end())
        if end is not None:
            return text[match.end() : end].strip() or None
    for marker in markers:
        head, found, tail = text.rpartition(marker)
        if found:
            return tail.strip().partition("\n")[0].strip(" :.") or None
    return None


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the group whose content begins at `start`; escaped braces do not count."""
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] in "{}":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return index
        index += 1
    return None
