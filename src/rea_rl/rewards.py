"""Reward functions and their registry.

The rollout computes what they need once per response and passes it as columns: `problem_id`,
`correct`, `num_tokens`, `num_think_tokens`, `num_reflections`. No reward looks at another one, so
their order in a recipe does not matter. All of a problem's responses must be in the same call.
"""

from __future__ import annotations

import math
import reprlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from generation.reflection_words import relative_density

# TRL's signature: f(prompts, completions, **columns) -> one value per row
RewardFunc = Callable[..., list[float]]


class RewardError(ValueError):
    """A reward does not do what it must."""


@dataclass(frozen=True)
class Reward:
    """A reward of a recipe's `reward_funcs`.

    Attributes:
        values: function of the columns, then of the settings; one value per row.
        columns: fields of `Rollout` that it reads, of all rows of a step on this rank.
        settings: recipe keys that it needs, all positive.
    """

    values: Callable[..., list[float]]
    columns: tuple[str, ...]
    settings: tuple[str, ...] = ()


def accuracy_values(correct: Sequence[bool]) -> list[float]:
    """1 for a right answer, 0 for a wrong or a missing one."""
    return [float(is_right) for is_right in correct]


def truncated_accuracy_values(
    correct: Sequence[bool], num_tokens: Sequence[int], target_lengths: Sequence[int]
) -> list[float]:
    """Accuracy under a hard truncation, DLER (arXiv 2510.15110): 1 for a right answer within the
    target, else 0.

    DLER's recipe has `scale_rewards: batch` and `dynamic_sampling: true` as well.
    """
    within = (n <= target_lengths[0] for n in num_tokens)
    return [float(right and fits) for right, fits in zip(correct, within, strict=True)]


def density_values(
    num_reflections: Sequence[int], num_think_tokens: Sequence[int], tokens_per_reflection: float
) -> list[float]:
    """`reflect` without its cap: the adversary of the study, an invitation to write words."""
    words = zip(num_reflections, num_think_tokens, strict=True)
    return [relative_density(n, tokens, tokens_per_reflection) for n, tokens in words]


def length_batch_values(correct: Sequence[bool], num_tokens: Sequence[int]) -> list[float]:
    """`length` with the shortest and longest response of the whole batch of different problems, as
    the original had it."""
    return length_reward_values(["batch"] * len(correct), correct, num_tokens)


def length_reward_values(
    problem: Sequence[Hashable], correct: Sequence[bool], num_tokens: Sequence[int]
) -> list[float]:
    """Length reward of Kimi k1.5 (arXiv 2501.12599): shortest and longest over all responses of one
    problem.

    lambda = 0.5 - (tokens - min) / (max - min); a right response gets lambda, a wrong one min(0,
    lambda). A problem whose responses are equally long gives 0. The original took minimum and
    maximum over the whole batch, in characters.

    >>> length_reward_values(["a", "a", "a"], [True, True, False], [100, 200, 100])
    [0.5, -0.5, 0.0]
    """
    values = _length_values(problem, [True] * len(correct), num_tokens)
    rows = zip(values, correct, strict=True)
    return [value if is_right else min(0.0, value) for value, is_right in rows]


def refined_length_reward_values(
    problem: Sequence[Hashable], correct: Sequence[bool], num_tokens: Sequence[int]
) -> list[float]:
    """Refined length reward of REA-RL: shortest and longest over the right responses of one
    problem.

    0.5 for the shortest right response, -0.5 for the longest, linear between; 0 if they are equally
    long. A wrong response gets -0.5, however short it is.

    >>> refined_length_reward_values(["a", "a", "a"], [True, True, False], [100, 200, 10])
    [0.5, -0.5, -0.5]
    """
    values = _length_values(problem, correct, num_tokens)
    return [value if is_right else -0.5 for value, is_right in zip(values, correct, strict=True)]


def reflection_reward_values(
    num_reflections: Sequence[int], num_think_tokens: Sequence[int], tokens_per_reflection: float
) -> list[float]:
    """Reflection reward of REA-RL: min(reflections per thinking token x `tokens_per_reflection`,
    1).

    `tokens_per_reflection` is measured on the base model (`tokens_per_reflection_quantile`; 225.09
    in the paper), so that four in five of its responses get the full 1: the reward punishes giving
    up reflection and does not ask for more. A response without thinking tokens gets 0.
    """
    density = density_values(num_reflections, num_think_tokens, tokens_per_reflection)
    return [min(value, 1.0) for value in density]


def sigmoid_length_values(
    problem: Sequence[Hashable],
    correct: Sequence[bool],
    num_tokens: Sequence[int],
    alpha: float = 0.2,
) -> list[float]:
    """Reward of Arora and Zanette (arXiv 2502.04463): 1 - alpha * sigmoid(z) for a right response,
    0 for a wrong one.

    z = (tokens - mean) / standard deviation over the right responses of the problem; 0 if these are
    equally long.

    >>> sigmoid_length_values(["a", "a", "b"], [True, True, False], [70, 70, 10])
    [0.9, 0.9, 0.0]
    """
    lengths = _of_each(problem, num_tokens, correct)

    def value(key: Hashable, tokens: int) -> float:
        deviation = statistics.pstdev(lengths[key])
        z = (tokens - statistics.fmean(lengths[key])) / deviation if deviation else 0.0
        return 1 - alpha / (1 + math.exp(-z))

    rows = zip(problem, correct, num_tokens, strict=True)
    return [value(key, tokens) if is_right else 0.0 for key, is_right, tokens in rows]


# Shares of right responses from which LASER-D calls a problem easy, and medium: 6 and 3 of its 8.
EASY_SHARE, MEDIUM_SHARE = 0.75, 0.375


def laser_values(
    problem: Sequence[Hashable],
    correct: Sequence[bool],
    num_tokens: Sequence[int],
    target_lengths: Sequence[int],
    alpha: float = 0.5,
) -> list[float]:
    """Step reward of LASER (arXiv 2505.15612): `alpha` for a right response of at most the target
    length, else 0.

    Three targets are LASER-D's for easy, medium and hard problems, told apart by their share of
    right responses. LASER-D adapts them during training; here they stay as given.

    >>> laser_values(["a", "a"], [True, True], [100, 101], [100])
    [0.5, 0.0]
    """
    verdicts = _of_each(problem, correct)

    def target(key: Hashable) -> int:
        share = statistics.fmean(verdicts[key])
        difficulty = 0 if share >= EASY_SHARE else 1 if share >= MEDIUM_SHARE else 2
        return target_lengths[difficulty % len(target_lengths)]

    rows = zip(problem, correct, num_tokens, strict=True)
    return [alpha if is_right and tokens <= target(key) else 0.0 for key, is_right, tokens in rows]


def l1_max_values(
    correct: Sequence[bool],
    num_tokens: Sequence[int],
    target_lengths: Sequence[int],
    alpha: float = 3e-4,
    delta: float = 0.5,
) -> list[float]:
    """Reward of L1-Max (arXiv 2503.04697): clip(alpha * (target - tokens) + delta, 0, 1) for a
    right response, else 0.

    There is one target. L1 also names it in the prompt; here `prompt_template` may do so.

    >>> l1_max_values([True, True, False], [1000, 2000, 10], [1000])
    [0.5, 0.2, 0.0]
    """
    rows = zip(correct, num_tokens, strict=True)
    return [
        min(max(alpha * (target_lengths[0] - n) + delta, 0.0), 1.0) if is_right else 0.0
        for is_right, n in rows
    ]


def overlong_values(num_tokens: Sequence[int], max_tokens: int, buffer: int) -> list[float]:
    """Soft overlong punishment of DAPO (arXiv 2503.14476): 0 until `buffer` tokens before the
    limit, then down to -1.

    >>> overlong_values([80, 90, 100], 100, 20)
    [0.0, -0.5, -1.0]
    """
    return [min(max((max_tokens - buffer - n) / buffer, -1.0), 0.0) for n in num_tokens]


def serial_decay_values(problem: Sequence[Hashable], correct: Sequence[bool]) -> list[float]:
    """Reward of S-GRPO (arXiv 2505.07686): 2^(1 - k) for the k-th right exit of a response, 0 for a
    wrong one.

    The rows of a problem are its whole response, which is the last exit, and then the cuts from the
    earliest on.

    >>> serial_decay_values(["a", "a", "a", "a"], [True, False, True, True])
    [0.25, 0.0, 1.0, 0.5]
    """
    rows = _of_each(problem, range(len(problem)))
    values = [0.0] * len(correct)
    for whole, *cuts in rows.values():
        right = [row for row in (*cuts, whole) if correct[row]]
        for rank, row in enumerate(right):
            values[row] = 0.5**rank
    return values


def _length_values(
    problem: Sequence[Hashable], counted: Sequence[bool], num_tokens: Sequence[int]
) -> list[float]:
    """0.5 - (tokens - min) / (max - min) over a problem's counted responses; 0 if all are equal."""
    lengths = _of_each(problem, num_tokens, counted)
    bounds = {key: (min(values), max(values)) for key, values in lengths.items()}

    def value(key: Hashable, tokens: int) -> float:
        shortest, longest = bounds.get(key, (0, 0))
        return 0.5 - (tokens - shortest) / (longest - shortest) if longest > shortest else 0.0

    return [value(key, tokens) for key, tokens in zip(problem, num_tokens, strict=True)]


def _of_each(
    problem: Sequence[Hashable], values: Sequence[Any], counted: Sequence[bool] | None = None
) -> dict[Hashable, list[Any]]:
    """Values of the responses to each problem, or of those that count."""
    found = defaultdict(list)
    for key, value, counts in zip(problem, values, counted or [True] * len(values), strict=True):
        if counts:
            found[key].append(value)
    return found


PATHS = ("problem_id", "correct", "num_tokens")
WORDS = ("num_reflections", "num_think_tokens")
REWARDS = {
    "accuracy": Reward(accuracy_values, ("correct",)),
    "length": Reward(length_reward_values, PATHS),
    "length_batch": Reward(length_batch_values, ("correct", "num_tokens")),
    "refine_length": Reward(refined_length_reward_values, PATHS),
    "reflect": Reward(reflection_reward_values, WORDS, ("tokens_per_reflection",)),
    "density": Reward(density_values, WORDS, ("tokens_per_reflection",)),
    "sigmoid_length": Reward(sigmoid_length_values, PATHS, ("sigmoid_alpha",)),
    "laser": Reward(laser_values, PATHS, ("target_lengths", "laser_alpha")),
    "l1_max": Reward(
        l1_max_values, ("correct", "num_tokens"), ("target_lengths", "l1_alpha", "l1_delta")
    ),
    "truncated_accuracy": Reward(
        truncated_accuracy_values, ("correct", "num_tokens"), ("target_lengths",)
    ),
    "overlong": Reward(
        overlong_values, ("num_tokens",), ("max_completion_length", "overlong_buffer")
    ),
    "serial_decay": Reward(serial_decay_values, ("problem_id", "correct")),
}


def reward_columns() -> list[str]:
    """Columns that any reward reads."""
    return list(dict.fromkeys(name for reward in REWARDS.values() for name in reward.columns))


def check_reward_names(names: list[str]) -> None:
    """Raise ValueError for a recipe's `reward_funcs` that are none, or unknown."""
    if not names:
        raise ValueError(f"reward_funcs is empty; give at least one of {sorted(REWARDS)}")
    if unknown := [name for name in names if name not in REWARDS]:
        raise ValueError(f"unknown reward_funcs {unknown}; valid names are {sorted(REWARDS)}")


def get_reward_funcs(
    names: list[str], tokens_per_reflection: float | None = None, **settings: Any
) -> list[RewardFunc]:
    """Reward functions by name (recipe key `reward_funcs`), as TRL calls them; `__name__` is the
    name in its metrics.

    Args:
        names: keys of `REWARDS`.
        tokens_per_reflection, settings: values of the recipe keys that these rewards need; others
            are ignored.

    Raises ValueError for an unknown name, and for a reward whose setting is missing or not
    positive.
    """
    check_reward_names(names)
    settings["tokens_per_reflection"] = tokens_per_reflection
    return [_bind(name, REWARDS[name], settings) for name in names]


def _bind(name: str, reward: Reward, settings: dict[str, Any]) -> RewardFunc:
    values = [settings.get(key) for key in reward.settings]
    for key, value in zip(reward.settings, values, strict=True):
        if not value or min(value if isinstance(value, list) else [value]) <= 0:
            raise ValueError(
                f"reward_funcs contains {name!r}, which needs a positive {key}, not {value}"
            )

    def func(prompts: list, completions: list, **columns: Any) -> list[float]:
        given = [columns[column] for column in reward.columns]
        return _numbers(name, reward.values(*given, *values), len(given[0]))

    func.__name__ = name
    return func


def _numbers(name: str, values: Any, num_rows: int) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != num_rows or not all(map(math.isfinite, numbers)):
        raise RewardError(
            f"the reward {name!r} gave {reprlib.repr(values)} for {num_rows} responses; return a "
            "list with one number for each of them"
        )
    return numbers
