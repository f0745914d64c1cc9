"""Counts of responses, and the metrics with intervals made of them; no files,
no models.

Intervals (95 %) come from a bootstrap over problems: the responses to one problem stay together,
because they are not independent. Every figure is a ratio of sums over problems, or the mean of such
ratios over benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from operator import add
from typing import Any

import numpy as np

NUM_RESAMPLES = 2000
BLOCK = 1 << 22  # draws that are held at once
# numerators and denominators, one of each per problem
Ratio = tuple[Sequence[float], Sequence[float]]
Numbers = float | np.ndarray
SHARES = (
    *("accuracy", "truncated", "answered", "no_room", "first_right", "corrected"),
    *("slips_corrected", "mistakes"),
)
ALL = "all"  # the group of all responses, next to one group per level


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; None if undefined, as tokens per word without words."""

    value: float | None
    low: float | None
    high: float | None

    def format(self, scale: float = 1.0, digits: int = 1, bounds: bool = False) -> str:
        """`value ± half the width of the interval`, all times `scale`; `-` without a value.

        It is `value [low, high]` with `bounds`, and where the value is one end of the interval.
        """
        if self.value is None:
            return "-"
        shown = f"{self.value * scale:.{digits}f}"
        if self.low is None or self.high is None:
            return shown
        if bounds or (self.low != self.high and self.value in (self.low, self.high)):
            return f"{shown} [{self.low * scale:.{digits}f}, {self.high * scale:.{digits}f}]"
        return f"{shown} ± {(self.high - self.low) / 2 * scale:.{digits}f}"


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """Counts of one response."""

    correct: bool
    num_tokens: int
    num_think_tokens: int
    num_reflections: int
    truncated: bool
    answered: bool = True  # whether an answer was found in it
    no_room: bool = False  # never asked for: the prompt alone fills the context
    # whether the first result that the thinking states is right; only with mistakes
    first_right: bool | None = None

    @property
    def corrected(self) -> bool:
        """A wrong first result and a right answer."""
        return self.correct and not self.first_right


@dataclass(frozen=True)
class ScoredProblem:
    """The responses to one problem."""

    id: str
    level: int | str | None
    responses: list[ScoredResponse]
    benchmark: str | None = None
    problem_digest: str | None = None  # of its text

    @property
    def mean_tokens(self) -> float:
        return sum(r.num_tokens for r in self.responses) / len(self.responses)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> Interval:
    """Sum of numerators over sum of denominators, one of each per problem, with a percentile
    bootstrap over problems.

    >>> ratio_interval([0, 4], [4, 4])  # two problems, four responses each: the widest interval
    Interval(value=0.5, low=0.0, high=1.0)
    """
    return mean_interval([(numerators, denominators)], seed)


def sums_by_problem(problems: Iterable[str], *counts: Iterable[float]) -> list[list[float]]:
    """Sums of each kind of counts by problem, from the problem and the counts of each response."""
    sums: dict[str, list[float]] = {}
    for problem, *values in zip(problems, *counts, strict=True):
        known = sums.setdefault(problem, [0.0] * len(values))
        known[:] = map(add, known, values)
    return [list(column) for column in zip(*sums.values(), strict=True)]


def mean_interval(benchmarks: Sequence[Ratio], seed: int = 0) -> Interval:
    """Mean over benchmarks of a ratio of sums, each benchmark weighing the same, for any number
    of problems.

    Args:
        benchmarks: numerators and denominators, one of each per problem. Problems are drawn within
            their benchmark.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    ratios = [_ratios([ratio], rng)[:, 0] for ratio in benchmarks]
    return interval(np.mean(ratios, axis=0))


def _ratios(ratios: Sequence[Ratio], rng: np.random.Generator) -> np.ndarray:
    """(1 + R, F) ratios of sums, see `resample`."""
    counts = np.array(ratios, dtype=float).reshape(2 * len(ratios), -1).T  # (P, 2F)
    sums = resample(counts[None], rng)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, ::2] / sums[:, 1::2]


def resample(counts: np.ndarray, seed: int | np.random.Generator = 0) -> np.ndarray:
    """Sums of counts, and those of resamples: problems are drawn with replacement, and so are
    seeds if there are several.

    Calls with one seed draw the same problems, so differences between models are of the same
    problems.

    Args:
        counts: (S, P, F): seeds, problems, kinds of counts.
        seed: of the draws.

    Returns:
        (1 + R, F); the first row is of the data as they are.
    """
    num_seeds, num_problems, num_counts = counts.shape
    rng, seed_rng = np.random.default_rng(seed), np.random.default_rng(1)
    size = max(BLOCK // (num_problems * (num_counts if num_seeds > 1 else 1)), 1)
    sums = [counts.sum(axis=(0, 1))[None]]
    for start in range(0, NUM_RESAMPLES, size):
        block = min(size, NUM_RESAMPLES - start)
        # How often each problem is drawn: all that a sum needs to know of a resample.
        drawn = rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=block)
        if num_seeds == 1:
            sums.append(drawn @ counts[0])
        else:
            seeds = seed_rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=block)
            sums.append(np.einsum("bs,spf,bp->bf", seeds, counts, drawn, optimize=True))
    return np.concatenate(sums)


def resampled_ratios(
    counts: Mapping[str, np.ndarray],
    ratios: Mapping[str, tuple[str, str, float]],
    inside: np.ndarray,
) -> dict[str, np.ndarray]:
    """(1 + R,) values of each figure, see `resample`.

    Args:
        counts: (S, P) by name.
        ratios: names of numerator and denominator, and a factor, by the name of the figure.
        inside: (P,), bool, problems that count.
    """
    stacked = np.stack([values * inside for values in counts.values()], axis=-1)  # (S, P, F)
    sums = dict(zip(counts, resample(stacked).T, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            name: factor * sums[top] / sums[bottom]
            for name, (top, bottom, factor) in ratios.items()
        }


def interval(values: np.ndarray) -> Interval:
    """Value and 95 % interval of a figure; `values` (1 + R,) has the figure itself first, then its
    resamples. Resamples in which it is not defined (0 / 0) do not count."""
    defined = values[1:][~np.isnan(values[1:])]
    with np.errstate(invalid="ignore"):  # infinite: tokens per word without a word
        low, high = (np.quantile(defined, q) if len(defined) else np.nan for q in (0.025, 0.975))
    return Interval(*(float(x) if math.isfinite(x) else None for x in (values[0], low, high)))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that at least one of k of the samples, drawn without replacement, is right (Chen et
    al. 2021, eq. 1).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def aes(accuracy: Numbers, tokens: Numbers, base_accuracy: Numbers, base_tokens: Numbers) -> Any:
    """Accuracy-efficiency score of O1-Pruner (arXiv 2501.12570): share of tokens saved, plus 3
    times the relative gain in accuracy, or minus 5 times the relative loss. Numbers or arrays.

    >>> float(aes(0.9, 50, base_accuracy=0.9, base_tokens=100))
    0.5
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no right answer
        gain = np.divide(accuracy, base_accuracy) - 1
        return 1 - np.divide(tokens, base_tokens) + np.where(gain >= 0, 3.0, 5.0) * gain


def against(ratios: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Figures of a row, (1 + R,) by name, with `tr`, tokens in percent of the base's, and `aes`."""
    accuracy, tokens = ratios["accuracy"], ratios["tokens"]
    tr = 100 * tokens / base["tokens"]
    return {**ratios, "tr": tr, "aes": aes(accuracy, tokens, base["accuracy"], base["tokens"])}


def figures(
    problems: Sequence[ScoredProblem], base: dict[str, float] | None = None
) -> dict[str, Interval]:
    """Figures of a set of problems, each weighing as much as it has responses.

    Mean tokens of the base model by problem id add `tr`, tokens in percent of the base model's.
    """

    def over(numerator: str, denominator: str | None = None, correct: bool | None = None) -> Ratio:
        counted = [[r for r in p.responses if correct in (None, r.correct)] for p in problems]
        return (
            [sum(getattr(r, numerator) for r in group) for group in counted],
            [
                sum(getattr(r, denominator) for r in group) if denominator else len(group)
                for group in counted
            ],
        )

    result = {
        "accuracy": over("correct"),
        "tokens": over("num_tokens"),
        "think_tokens": over("num_think_tokens"),
        "truncated": over("truncated"),
        "answered": over("answered"),
        "no_room": over("no_room"),
        "tokens_per_word": over("num_think_tokens", "num_reflections"),
    }
    for kind, correct in (("correct", True), ("wrong", False)):
        result[f"tokens_{kind}"] = over("num_tokens", correct=correct)
        result[f"think_tokens_{kind}"] = over("num_think_tokens", correct=correct)
    result |= _passes(problems)
    if all(r.first_right is not None for p in problems for r in p.responses):
        result |= {"first_right": over("first_right"), "corrected": over("corrected")}
    if base is not None:
        result["tr"] = [100 * p.mean_tokens for p in problems], [base[p.id] for p in problems]
    columns = _ratios(list(result.values()), np.random.default_rng(0)).T
    return intervals(dict(zip(result, columns, strict=True)), len(problems))


def intervals(values: Mapping[str, np.ndarray], num_problems: int) -> dict[str, Interval]:
    """`interval` of each figure, (1 + R,) by name; of shares of 0 and 1 Wilson's."""
    found = {name: interval(column) for name, column in values.items()}
    return {
        name: at_an_end(one, num_problems) if name in SHARES or name.startswith("pass@") else one
        for name, one in found.items()
    }


def at_an_end(interval: Interval, num_problems: int) -> Interval:
    """Wilson's interval for a share of 0 or 1, whose resamples are all alike."""
    if interval.value not in (0, 1):
        return interval
    from scipy.stats import binomtest

    test = binomtest(round(interval.value * num_problems), num_problems)
    found = test.proportion_ci(method="wilson")
    return Interval(interval.value, float(found.low), float(found.high))


def _passes(problems: Sequence[ScoredProblem]) -> dict[str, Ratio]:
    """pass@k for the powers of two above 1, up to the responses that every problem has."""
    most = min(len(p.responses) for p in problems)
    return {
        f"pass@{k}": (
            [pass_at_k(len(p.responses), sum(r.correct for r in p.responses), k) for p in problems],
            [1] * len(problems),
        )
        for k in (2**i for i in range(1, most.bit_length()))
    }


def groups(problems: Sequence[ScoredProblem]) -> dict[str, list[ScoredProblem]]:
    """All problems; if rows have a `level` those of each level, easiest first, and a
    `benchmark` those of each."""
    levels = sorted({p.level for p in problems if p.level is not None})
    benchmarks = dict.fromkeys(p.benchmark for p in problems if p.benchmark is not None)
    return (
        {ALL: list(problems)}
        | {f"level {level}": [p for p in problems if p.level == level] for level in levels}
        | {name: [p for p in problems if p.benchmark == name] for name in benchmarks}
    )
