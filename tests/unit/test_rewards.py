"""Rewards: values worked out by hand, TRL's signature, and independence of order."""

from __future__ import annotations

import pytest

from rea_rl import rewards
from rea_rl.rewards import get_reward_funcs, length_reward_values, refined_length_reward_values

COLUMNS = {
    "problem_id": ["p", "q", "p", "q", "p", "q"],
    "correct": [True, True, False, False, True, True],
    "num_tokens": [100, 40, 50, 10, 300, 40],
    "num_think_tokens": [90, 30, 0, 5, 200, 40],
    "num_reflections": [1, 0, 0, 1, 1, 1],
}
EXPECTED = {
    "accuracy": [1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
    # p: 50 to 300 over all its paths, so 100 -> 0.5 - 50/250; q: 10 to 40. A wrong path never gains.
    "length": [0.3, -0.5, 0.0, 0.0, -0.5, -0.5],
    # p: right paths of 100 and 300; q: right paths equally long.
    "refine_length": [0.5, 0.0, -0.5, -0.5, -0.5, 0.0],
    # Density x 100, at most 1.
    "reflect": [1.0, 0.0, 0.0, 1.0, 0.5, 1.0],
}


def evaluate(names: list[str]) -> dict[str, list[float]]:
    funcs = get_reward_funcs(names, tokens_per_reflection=100)
    rows = ["row"] * 6
    return {f.__name__: f(prompts=rows, completions=rows, trainer_state=None, **COLUMNS) for f in funcs}


def test_rewards_by_hand():
    values = evaluate(list(EXPECTED))
    assert list(values) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert values[name] == pytest.approx(expected), name


def test_order_in_the_recipe_does_not_matter():
    assert evaluate(["reflect", "refine_length", "length", "accuracy"]) == evaluate(list(EXPECTED))
    assert evaluate(["refine_length"])["refine_length"] == pytest.approx(EXPECTED["refine_length"])


@pytest.mark.parametrize(
    ("correct", "num_tokens", "length", "refined"),
    [
        ([True], [70], [0.0], [0.0]),
        ([False], [70], [0.0], [-0.5]),
        ([True, True], [70, 70], [0.0, 0.0], [0.0, 0.0]),
        ([False, False], [60, 70], [0.0, -0.5], [-0.5, -0.5]),
        ([True, False], [60, 70], [0.5, -0.5], [0.0, -0.5]),
        ([True, False], [70, 60], [-0.5, 0.0], [0.0, -0.5]),
        ([True, True, True, True], [20, 40, 60, 120], [0.5, 0.3, 0.1, -0.5], [0.5, 0.3, 0.1, -0.5]),
    ],
)
def test_length_rewards_of_one_problem(correct, num_tokens, length, refined):
    problem = ["p"] * len(correct)
    assert length_reward_values(problem, correct, num_tokens) == pytest.approx(length)
    assert refined_length_reward_values(problem, correct, num_tokens) == pytest.approx(refined)


def test_reflection_reward_is_capped_and_zero_without_tokens():
    values = rewards.reflection_reward_values([3, 1, 5, 0], [500, 900, 0, 500], 225.09)
    assert values == pytest.approx([1.0, 0.2501, 0.0, 0.0])


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError):
        refined_length_reward_values(["p", "p"], [True], [10, 20])


def test_unknown_reward_lists_the_valid_names():
    with pytest.raises(ValueError, match=r"\['brevity'\].*\['accuracy', 'length', 'refine_length', 'reflect'\]"):
        get_reward_funcs(["accuracy", "brevity"])


@pytest.mark.parametrize("tokens_per_reflection", [None, 0, -1.0])
def test_reflect_needs_its_threshold(tokens_per_reflection):
    with pytest.raises(ValueError, match="needs a positive tokens_per_reflection"):
        get_reward_funcs(["reflect"], tokens_per_reflection)
