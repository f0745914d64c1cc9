"""Reflection words: how often a thinking turns back on itself, and how often the base model's does."""

from __future__ import annotations

import re

import numpy as np

REFLECTION_WORDS = ("wait", "alternatively", "check", "but")

# Words at most 59 characters apart on one line are one cluster and count once. The published thresholds were measured
# without word boundaries ("distribution" counts through its "but"), so that is the default of the 7B recipes.
_MAX_GAP = 59


def _cluster_pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"{word}(?:.{{0,{_MAX_GAP}}}{word})*", re.IGNORECASE)


_WORD = f"(?:{'|'.join(REFLECTION_WORDS)})"
_UNBOUNDED = _cluster_pattern(_WORD)
_WORD_BOUNDED = _cluster_pattern(rf"\b{_WORD}\b")


def count_reflections(think: str, word_bounded: bool = False) -> int:
    """Number of clusters of reflection words in a thinking.

    `word_bounded` counts whole words only; a threshold measured with one setting is not valid for the other.
    """
    pattern = _WORD_BOUNDED if word_bounded else _UNBOUNDED
    return sum(1 for _ in pattern.finditer(think))


def tokens_per_reflection_quantile(
    num_reflections: list[int], num_think_tokens: list[int], share: float = 0.2
) -> float:
    """Threshold of the reflection reward, measured on the base model's paths.

    Inverse of the `share` quantile (linear interpolation) of the density, reflections per thinking token; the paper's
    225.09 is that of DeepSeek-R1-Distill-Qwen-7B at 0.2. Paths without thinking tokens are left out. Raises ValueError
    if no path is left, or if the quantile is 0, which the reward cannot use.
    """
    densities = [n / tokens for n, tokens in zip(num_reflections, num_think_tokens, strict=True) if tokens > 0]
    if not densities:
        raise ValueError(f"none of the {len(num_think_tokens)} paths has thinking tokens: nothing to measure")
    quantile = float(np.quantile(densities, share))
    if quantile == 0:
        raise ValueError(
            f"the {share} quantile of the reflection density is 0 over {len(densities)} paths, "
            f"{densities.count(0)} of which have no reflection word; use a larger share"
        )
    return 1 / quantile
