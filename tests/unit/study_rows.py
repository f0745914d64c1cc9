"""Counts of a study's rows in tests."""

from __future__ import annotations

import numpy as np

from rea_rl.study.report import RowCounts

LEVELS = [1, 2, 3, 4, 5, 5]


def counts(name, correct, tokens, words=None, rechecks=None, levels=LEVELS):
    """A row whose problems have one response per seed; `correct` and `tokens` are (S, P)."""
    tokens = np.array(tokens, dtype=float)
    zeros = np.zeros_like(tokens)
    return RowCounts(
        name, f"row {name}", [(f"p{i}", None) for i in range(tokens.shape[1])], levels,
        {
            "responses": zeros + 1, "correct": np.array(correct, dtype=float), "num_tokens": tokens,
            "num_think_tokens": tokens, "num_reflections": zeros + (1 if words is None else words),
            "rechecks": zeros + (1 if rechecks is None else rechecks), "truncated": zeros,
            "corrected": zeros + 0.25,
            "slips": zeros + 0.5, "empty_checks": zeros,
        },
    )  # fmt: skip
