"""A prompt's responses as rows of a packed step."""

from __future__ import annotations

import numpy as np

from rea_rl.packing.prefix_tree import TokenPath


def group(seed=0, pairs=3, vocabulary=90):
    """A prompt's originals and their revisions, and the last original a second time."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, vocabulary, 5)
    paths = []
    for _ in range(pairs):
        original = rng.integers(0, vocabulary, rng.integers(12, 40))
        kept = original[: len(original) // 2]
        for completion in (original, np.concatenate([kept, rng.integers(0, vocabulary, 6)])):
            paths.append(TokenPath(np.concatenate([prompt, completion]), len(prompt)))
    return paths + [paths[-2]]
