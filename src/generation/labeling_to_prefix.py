"""From the reflection model's label log-probabilities to the paragraph after which a thinking is cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Step = list[tuple[float, str]]  # one generated token: (log-probability, text) of its top alternatives, best first


@dataclass(frozen=True)
class Cuts:
    """Index of the last kept paragraph for each strength; `strong` cuts earliest, training uses `normal`."""

    strong: int
    normal: int
    weak: int


def label_positions(steps: list[Step]) -> list[int]:
    """Indices of the label tokens among the generated ones: most likely alternative contains `Think` or `Result`."""
    return [i for i, step in enumerate(steps) if "Think" in step[0][1] or "Result" in step[0][1]]


def result_probabilities(steps: list[Step]) -> list[float]:
    """P(Result) of each label token found, in order, normalized over the alternatives that are a label at all."""
    return [_result_probability(steps[i]) for i in label_positions(steps)]


def _result_probability(step: Step) -> float:
    result = sum(math.exp(logprob) for logprob, token in step if "result" in token.casefold())
    think = sum(math.exp(logprob) for logprob, token in step if "think" in token.casefold())
    return result / (result + think)


def choose_cuts(
    p_result: list[float],
    num_paragraphs: int,
    *,
    second_half: float = 0.5,
    strong_threshold: float = 0.25,
    threshold: float = 0.5,
    cap_share: float = 0.05,
    cap_offset: int = 10,
    cap_max: int = 5,
) -> Cuts:
    """Choose the last kept paragraph for each strength.

    Args:
        p_result: P(Result) per paragraph; entries beyond `num_paragraphs` are dropped, missing ones are no hit.
        num_paragraphs: paragraphs of the thinking, at least 1.
        second_half: share of the paragraphs before the first one that `normal` may stop at.
        strong_threshold: smallest P(Result) that `strong` stops at.
        threshold: smallest P(Result) that `normal` and `weak` stop at.
        cap_share, cap_offset, cap_max: at least min(floor((n + cap_offset) * cap_share), cap_max) of n are removed.
    """
    if num_paragraphs < 1:
        raise ValueError(f"num_paragraphs is {num_paragraphs}; a thinking without paragraphs has no cut")
    p_result = p_result[:num_paragraphs]
    hits = {i for i, p in enumerate(p_result) if p >= threshold}
    normal = min((i for i in hits if i >= num_paragraphs * second_half), default=None)
    strong, weak = _strong(p_result, normal, strong_threshold), _weak(hits, normal)
    last = num_paragraphs - 1
    cap = last - min(math.floor((num_paragraphs + cap_offset) * cap_share), cap_max)
    return Cuts(*(max(0, min(last if cut is None else cut, cap)) for cut in (strong, normal, weak)))


def decided_cut(strength: str, p_result: list[float], num_paragraphs: int, **settings: Any) -> int | None:
    """Cut of a strength as soon as no further label can change it, else None.

    What may follow the labels so far is an end of the reply, or any probabilities. Three ways of going on reach the
    smallest and the largest cut that are still possible, so if they agree on a cut, all do: nothing more, a result at
    the first paragraph where `normal` may stop and nothing after it, and results only.

    Args:
        strength: `strong`, `normal` or `weak`.
        p_result: P(Result) of the labels so far.
        num_paragraphs, settings: those of `choose_cuts`.
    """
    given = len(p_result)
    rest = max(num_paragraphs - given, 0)
    until_normal = max(math.ceil(num_paragraphs * settings.get("second_half", 0.5)) - given, 0)
    tails = [], [0.0] * until_normal + [1.0], [1.0] * rest
    cuts = {getattr(choose_cuts(p_result + tail, num_paragraphs, **settings), strength) for tail in tails}
    return cuts.pop() if len(cuts) == 1 else None


def _strong(p_result: list[float], normal: int | None, threshold: float) -> int | None:
    """Most certain result no later than `normal`."""
    end = len(p_result) if normal is None else normal + 1
    candidates = [i for i, p in enumerate(p_result[:end]) if p >= threshold]
    return max(candidates, key=p_result.__getitem__, default=normal)


def _weak(hits: set[int], normal: int | None) -> int | None:
    """First result after the unbroken run of results that starts at `normal`: one confirmation more."""
    if normal is None:
        return None
    run_end = normal
    while run_end + 1 in hits:
        run_end += 1
    return min((i for i in hits if i > run_end), default=run_end)
