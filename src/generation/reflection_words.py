"""Reflection words: how often a thinking turns back on itself, and how often the base model's
does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

REFLECTION_WORDS = ("wait", "alternatively", "check", "but")

# Words at most 59 characters apart on one line are one cluster and count once. The published
# thresholds were measured without word boundaries ("distribution" counts through its "but"), so
# that is the default of the 7B recipes.
_MAX_GAP = 59
# Letters that a search without case takes for `i` and `k`, or that are no single letter in lower
# case.
_LETTERS = str.maketrans("\u0130\u0131\u212a", "iik")


def count_reflections(think: str, word_bounded: bool = False) -> int:
    """Number of clusters of reflection words in a thinking; `word_bounded` counts whole words only.
    A threshold measured with one setting is not valid for the other."""
    lowered = (think if think.isascii() else think.translate(_LETTERS)).lower()
    words = sorted(span for word in REFLECTION_WORDS for span in _find(word, lowered))
    if word_bounded:
        words = [
            (start, end)
            for start, end in words
            if not (_goes_on(think, start - 1) or _goes_on(think, end))
        ]
    ends = [-_MAX_GAP - 1, *(end for _, end in words)]
    return sum(
        start - before > _MAX_GAP or "\n" in think[max(before, 0) : start]
        for (start, _), before in zip(words, ends, strict=False)
    )


def _find(word: str, text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of a word anywhere in the text; no two of the words can overlap."""
    start = text.find(word)
    while start >= 0:
        yield start, start + len(word)
        start = text.find(word, start + len(word))


def _goes_on(text: str, place: int) -> bool:
    """Whether there is a letter, digit or underscore at a place."""
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")


def relative_density(num_reflections: int, num_tokens: int, tokens_per_reflection: float) -> float:
    """Reflections per token of a trace, relative to the threshold of the reflection reward; that
    reward is its part up to 1. A trace without tokens has 0."""
    return num_reflections / num_tokens * tokens_per_reflection if num_tokens else 0.0


def tokens_per_reflection_quantile(
    num_reflections: list[int], num_think_tokens: list[int], share: float = 0.2
) -> float:
    """Threshold of the reflection reward, measured on the base model's responses.

    Inverse of the `share` quantile (linear interpolation) of the density, reflections per thinking
    token; the paper's 225.09 is that of DeepSeek-R1-Distill-Qwen-7B at 0.2. Responses without
    thinking tokens are left out. Raises ValueError if no response is left, or if the quantile is 0,
    which the reward cannot use.
    """
    densities = [
        n / tokens
        for n, tokens in zip(num_reflections, num_think_tokens, strict=True)
        if tokens > 0
    ]
    if not densities:
        raise ValueError(
            f"none of the {len(num_think_tokens)} responses has thinking tokens: nothing to measure"
        )
    quantile = float(np.quantile(densities, share))
    if quantile == 0:
        raise ValueError(
            f"the {share} quantile of the reflection density is 0 over {len(densities)} responses, "
            f"{densities.count(0)} without a reflection word; use a larger share"
        )
    return 1 / quantile
