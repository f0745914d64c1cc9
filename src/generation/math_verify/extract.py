"""Find the final answer in a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rea_core.boxes import last_boxed

Thinking = Literal["open", "closed", "unknown"]

# characters; the longest gold of the six benchmarks has 300, and longer texts are no answers
MAX_LENGTH = 2000
THINK_START, THINK_END = "<think>", "</think>"


def extract_answer(
    text: str,
    markers: Sequence[str] = (),
    thinking: Thinking = "unknown",
    around: tuple[str, str] = (THINK_START, THINK_END),
) -> str | None:
    r"""Return the content of the last complete `\boxed{}` after the thinking, or None.

    An unclosed box is no answer (the text was cut off inside it), nor is an empty one, nor a box
    inside thinking that never ended. Of nested boxes the inner one counts, and boxes that are only
    listed (`\boxed{3} and \boxed{5}`) are one answer. The time is linear in the text.

    Args:
        text: Whole completion, or the answer part of one.
        markers: Further phrases that introduce an answer, such as `"The answer is"` or `"####"`.
            Where there is no complete box, the rest of the line after the last of them is the
            answer. None by default: a recipe asks for them.
        thinking: What the prompt did before the completion began. `"open"`: it ended inside a
            thinking, as R1's template does, so an answer can only stand after the first `</think>`,
            and before a thinking that begins again without an end.
            `"closed"`: it closed its thinking, or the model has none, so all of the text is answer.
            `"unknown"`: a literal `<think>` or `</think>` in the text marks the thinking, and a
            text without them is answer throughout.
        around: The model's texts before and after a thinking, in place of `<think>` and `</think>`.

    Raises:
        ValueError: `thinking` is none of the three, or `text` is no text.

    Example:
        >>> extract_answer("<think>It is \\boxed{1}.</think>So \\boxed{\\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> extract_answer("It is \\boxed{1}, or", thinking="open") is None
        True
    """
    answer_part = answer_part_of(text, thinking, around)
    if (boxed := last_boxed(answer_part)) is not None:
        return boxed
    for marker in markers:
        _, found, tail = answer_part.rpartition(marker)
        if found:
            return tail.strip().partition("\n")[0].strip(" :.") or None
    return None


def answer_part_of(
    text: str, thinking: Thinking, around: tuple[str, str] = (THINK_START, THINK_END)
) -> str:
    """Part of a completion in which an answer can stand; the arguments are `extract_answer`'s."""
    if thinking not in ("open", "closed", "unknown"):
        raise ValueError(f"thinking={thinking!r} is unknown; use one of open, closed, unknown.")
    if not isinstance(text, str):
        raise ValueError(f"text={text!r} is no text.")
    think_start, think_end = around
    is_marked = think_start in text or think_end in text
    if thinking == "closed" or thinking == "unknown" and not is_marked:
        return text
    _, end, part = (text.partition if thinking == "open" else text.rpartition)(think_end)
    ended, mark, rest = (part if end else "").rpartition(think_end)
    return ended + mark + rest.partition(think_start)[0]  # a last thinking may have no end
