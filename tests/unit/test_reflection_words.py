"""Reflection words: clusters, word boundaries, and the threshold measured from densities."""

from __future__ import annotations

import pytest

from generation.reflection_words import count_reflections, tokens_per_reflection_quantile


@pytest.mark.parametrize(
    ("think", "unbounded", "word_bounded"),
    [
        ("", 0, 0),
        ("Wait, that is 12.", 1, 1),
        ("a distribution", 1, 0),
        ("check" + "." * 59 + "but", 1, 1),  # near enough to be one cluster
        ("check" + "." * 60 + "but", 2, 2),
        ("check\nbut", 2, 2),  # a cluster stays on its line
        ("wait " + "check " * 50, 1, 1),
        ("button, then wait", 1, 1),
        ("I await it. Check!", 1, 1),
    ],
)
def test_count_reflections(think, unbounded, word_bounded):
    assert count_reflections(think) == unbounded
    assert count_reflections(think, word_bounded=True) == word_bounded


def test_threshold_is_the_inverse_of_the_density_quantile():
    # Densities 0.00, 0.01, 0.02, 0.03, 0.04, 0.05: the 20 % quantile of six values lies on the
    # second.
    num_reflections, num_think_tokens = [0, 1, 2, 3, 4, 5, 7], [100, 100, 100, 100, 100, 100, 0]
    assert tokens_per_reflection_quantile(num_reflections, num_think_tokens) == pytest.approx(100.0)
    # 0.5 lies half-way between the third and the fourth: 0.025.
    assert tokens_per_reflection_quantile(
        num_reflections, num_think_tokens, share=0.5
    ) == pytest.approx(40.0)


def test_threshold_needs_reflections_and_tokens():
    with pytest.raises(ValueError, match="2 without a reflection word; use a larger share"):
        tokens_per_reflection_quantile([0, 0, 1], [10, 10, 10])
    with pytest.raises(ValueError, match="none of the 2 responses has thinking tokens"):
        tokens_per_reflection_quantile([0, 0], [0, 0])
