"""Reward functions and their registry.

The rollout computes what they need once per path and passes it as columns: `problem_id`, `correct`, `num_tokens`,
`num_think_tokens`, `num_reflections`. No reward looks at another one, so their order in a recipe does not matter. All
of a problem's paths must be in the same call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial, update_wrapper
from typing import Any

RewardFunc = Callable[..., list[float]]  # TRL's signature: f(prompts, completions, **columns) -> one value per row


def accuracy(prompts: list, completions: list, *, correct: list[bool], **columns: Any) -> list[float]:
    """1 for a right answer, 0 for a wrong or a missing one."""
    return [float(is_right) for is_right in correct]


def length(
    prompts: list,
    completions: list,
    *,
    problem_id: list[str],
    correct: list[bool],
    num_tokens: list[int],
    **columns: Any,
) -> list[float]:
    """Length reward of Kimi k1.5, see `length_reward_values`."""
    return length_reward_values(problem_id, correct, num_tokens)


def refine_length(
    prompts: list,
    completions: list,
    *,
    problem_id: list[str],
    correct: list[bool],
    num_tokens: list[int],
    **columns: Any,
) -> list[float]:
    """Length reward of REA-RL, see `refined_length_reward_values`."""
    return refined_length_reward_values(problem_id, correct, num_tokens)


def reflect(
    prompts: list,
    completions: list,
    *,
    num_reflections: list[int],
    num_think_tokens: list[int],
    tokens_per_reflection: float,
    **columns: Any,
) -> list[float]:
    """Reflection reward of REA-RL, see `reflection_reward_values`."""
    return reflection_reward_values(num_reflections, num_think_tokens, tokens_per_reflection)


def length_reward_values(
    problem: Sequence[Hashable], correct: Sequence[bool], num_tokens: Sequence[int]
) -> list[float]:
    """Length reward of Kimi k1.5 (arXiv 2501.12599): shortest and longest over all paths of one problem.

    lambda = 0.5 - (tokens - min) / (max - min); a right path gets lambda, a wrong one min(0, lambda). A problem whose
    paths are equally long gives 0. The original took minimum and maximum over the whole batch, in characters.

    >>> length_reward_values(["a", "a", "a"], [True, True, False], [100, 200, 100])
    [0.5, -0.5, 0.0]
    """
    shares = _length_shares(problem, [True] * len(correct), num_tokens)
    values = (0.0 if share is None else 0.5 - share for share in shares)
    return [value if is_right else min(0.0, value) for value, is_right in zip(values, correct, strict=True)]


def refined_length_reward_values(
    problem: Sequence[Hashable], correct: Sequence[bool], num_tokens: Sequence[int]
) -> list[float]:
    """Refined length reward of REA-RL: shortest and longest over the right paths of one problem.

    0.5 for the shortest right path, -0.5 for the longest, linear between; 0 if they are equally long. A wrong path
    gets -0.5, however short it is.

    >>> refined_length_reward_values(["a", "a", "a"], [True, True, False], [100, 200, 10])
    [0.5, -0.5, -0.5]
    """
    shares = _length_shares(problem, correct, num_tokens)
    values = (0.0 if share is None else 0.5 - share for share in shares)
    return [value if is_right else -0.5 for value, is_right in zip(values, correct, strict=True)]


def reflection_reward_values(
    num_reflections: Sequence[int], num_think_tokens: Sequence[int], tokens_per_reflection: float
) -> list[float]:
    """Reflection reward of REA-RL: min(reflections per thinking token x `tokens_per_reflection`, 1).

    `tokens_per_reflection` is measured on the base model (`tokens_per_reflection_quantile`; 225.09 in the paper), so
    that four in five of its paths get the full 1: the reward punishes giving up reflection and does not ask for more.
    A path without thinking tokens gets 0.
    """
    return [
        min(reflections / tokens * tokens_per_reflection, 1.0) if tokens else 0.0
        for reflections, tokens in zip(num_reflections, num_think_tokens, strict=True)
    ]


def _length_shares(
    problem: Sequence[Hashable], counted: Sequence[bool], num_tokens: Sequence[int]
) -> list[float | None]:
    """(tokens - min) / (max - min) over the counted paths of each problem; None where these are equally long."""
    lengths = defaultdict(list)
    for key, is_counted, tokens in zip(problem, counted, num_tokens, strict=True):
        if is_counted:
            lengths[key].append(tokens)
    bounds = {key: (min(values), max(values)) for key, values in lengths.items()}

    def share(key: Hashable, tokens: int) -> float | None:
        shortest, longest = bounds.get(key, (0, 0))
        return (tokens - shortest) / (longest - shortest) if longest > shortest else None

    return [share(key, tokens) for key, tokens in zip(problem, num_tokens, strict=True)]


REWARD_FUNCS: dict[str, RewardFunc] = {f.__name__: f for f in (accuracy, length, refine_length, reflect)}


def get_reward_funcs(names: list[str], tokens_per_reflection: float | None = None) -> list[RewardFunc]:
    """Reward functions by name (recipe key `reward_funcs`), settings bound, `__name__` kept for TRL's metrics.

    Raises ValueError for an unknown name, and for `reflect` without a positive `tokens_per_reflection`.
    """
    if unknown := [name for name in names if name not in REWARD_FUNCS]:
        raise ValueError(f"unknown reward_funcs {unknown}; valid names are {sorted(REWARD_FUNCS)}")
    if "reflect" in names and not (tokens_per_reflection and tokens_per_reflection > 0):
        raise ValueError(
            f"reward_funcs contains 'reflect', which needs a positive tokens_per_reflection, not "
            f"{tokens_per_reflection}; measure it on the base model's paths (225.09 for DeepSeek-R1-Distill-Qwen-7B)"
        )
    bound = update_wrapper(partial(reflect, tokens_per_reflection=tokens_per_reflection), reflect)
    return [bound if name == "reflect" else REWARD_FUNCS[name] for name in names]
