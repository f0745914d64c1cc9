"""Rewards: values worked out by hand, TRL's signature, and independence of order."""

from __future__ import annotations

import pytest

from rea_rl import rewards
from rea_rl.reward_trial import try_rewards
from rea_rl.rewards import (
    REWARDS,
    get_reward_funcs,
    length_reward_values,
    refined_length_reward_values,
)
from rea_rl.run import training

COLUMNS = {
    "problem_id": ["p", "q", "p", "q", "p", "q"],
    "correct": [True, True, False, False, True, True],
    "num_tokens": [100, 40, 50, 10, 300, 40],
    "num_think_tokens": [90, 30, 0, 5, 200, 40],
    "num_reflections": [1, 0, 0, 1, 1, 1],
}
EXPECTED = {
    "accuracy": [1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
    # p: 50 to 300 over all its paths, so 100 -> 0.5 - 50/250; q: 10 to 40. A wrong path never
    # gains.
    "length": [0.3, -0.5, 0.0, 0.0, -0.5, -0.5],
    # p: right paths of 100 and 300; q: right paths equally long.
    "refine_length": [0.5, 0.0, -0.5, -0.5, -0.5, 0.0],
    # Density x 100, at most 1.
    "reflect": [1.0, 0.0, 0.0, 1.0, 0.5, 1.0],
}


def evaluate(names: list[str]) -> dict[str, list[float]]:
    funcs = get_reward_funcs(names, tokens_per_reflection=100)
    rows = ["row"] * 6
    return {
        f.__name__: f(prompts=rows, completions=rows, trainer_state=None, **COLUMNS) for f in funcs
    }


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
    with pytest.raises(
        ValueError, match=r"\['brevity'\].*\['accuracy', 'density', .*'truncated_accuracy'\]"
    ):
        get_reward_funcs(["accuracy", "brevity"])


@pytest.mark.parametrize("tokens_per_reflection", [None, 0, -1.0])
def test_reflect_needs_its_threshold(tokens_per_reflection):
    with pytest.raises(ValueError, match="needs a positive tokens_per_reflection"):
        get_reward_funcs(["reflect"], tokens_per_reflection)


SETTINGS = {
    "sigmoid_alpha": 0.2,
    "target_lengths": [100],
    "laser_alpha": 0.5,
    "l1_alpha": 0.005,
    "l1_delta": 0.5,
    "max_completion_length": 200,
    "overlong_buffer": 50,
}
# One problem's paths: (correct, num_tokens) of each. 200 tokens is the limit of a completion.
GROUPS = {
    "mixed": ([True, True, True, False], [60, 90, 150, 40]),
    "ties": ([True, True, True, True], [80, 80, 80, 80]),
    "single right path": ([False, True, False, False], [60, 120, 150, 40]),
    "all wrong": ([False, False, False, False], [60, 90, 150, 40]),
    "all truncated": ([False, False, False, False], [200, 200, 200, 200]),
}
# mixed: right paths of 60, 90, 150: mean 100, deviation sqrt(1400) = 37.4166, z = -1.0690, -0.2673,
# 1.3363. sigmoid(z) = 0.25559, 0.43358, 0.79189.
PEERS = {
    "sigmoid_length": {
        "mixed": [0.948882, 0.913284, 0.841622, 0.0],
        "ties": [0.9] * 4,
        "single right path": [0.0, 0.9, 0.0, 0.0],
        "all wrong": [0.0] * 4,
        "all truncated": [0.0] * 4,
    },
    "laser": {
        "mixed": [0.5, 0.5, 0.0, 0.0],
        "ties": [0.5] * 4,
        "single right path": [0.0] * 4,  # right, but over the target
        "all wrong": [0.0] * 4,
        "all truncated": [0.0] * 4,
    },
    "l1_max": {
        "mixed": [0.7, 0.55, 0.25, 0.0],
        "ties": [0.6] * 4,
        "single right path": [0.0, 0.4, 0.0, 0.0],
        "all wrong": [0.0] * 4,
        "all truncated": [0.0] * 4,
    },
    "truncated_accuracy": {
        "mixed": [1.0, 1.0, 0.0, 0.0],
        "ties": [1.0] * 4,
        "single right path": [0.0] * 4,
        "all wrong": [0.0] * 4,
        "all truncated": [0.0] * 4,
    },
    "overlong": {
        "mixed": [0.0] * 4,  # 150 = 200 - 50 is where it begins
        "ties": [0.0] * 4,
        "single right path": [0.0] * 4,
        "all wrong": [0.0] * 4,
        "all truncated": [-1.0] * 4,
    },
    "serial_decay": {  # the first row is the whole path and the last exit
        "mixed": [0.25, 1.0, 0.5, 0.0],
        "ties": [0.125, 1.0, 0.5, 0.25],
        "single right path": [0.0, 1.0, 0.0, 0.0],
        "all wrong": [0.0] * 4,
        "all truncated": [0.0] * 4,
    },
    "length": {
        "mixed": [0.5 - 20 / 110, 0.5 - 50 / 110, -0.5, 0.0],
        "ties": [0.0] * 4,
        "single right path": [0.0, 0.5 - 80 / 110, -0.5, 0.0],
        "all wrong": [0.0, 0.0, -0.5, 0.0],
        "all truncated": [0.0] * 4,
    },
    "refine_length": {
        "mixed": [0.5, 0.5 - 30 / 90, -0.5, -0.5],
        "ties": [0.0] * 4,
        "single right path": [-0.5, 0.0, -0.5, -0.5],
        "all wrong": [-0.5] * 4,
        "all truncated": [-0.5] * 4,
    },
}


def evaluate_group(name, problem, correct, num_tokens, **changes):
    (func,) = get_reward_funcs([name], 100.0, **{**SETTINGS, **changes})
    rows = ["row"] * len(correct)
    columns = {"num_think_tokens": num_tokens, "num_reflections": [1] * len(correct)}
    return func(
        prompts=rows,
        completions=rows,
        problem_id=problem,
        correct=correct,
        num_tokens=num_tokens,
        **columns,
    )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", PEERS)
def test_rewards_of_one_problem_by_hand(name, group):
    values = evaluate_group(name, ["p"] * 4, *GROUPS[group])
    assert values == pytest.approx(PEERS[name][group], abs=1e-5)


def test_table_has_every_reward_that_compares_paths():
    assert {"accuracy", "reflect", "density", "length_batch"} == REWARDS.keys() - PEERS.keys()


def test_overlong_falls_within_the_buffer():
    assert evaluate_group("overlong", ["p"] * 4, [True] * 4, [151, 175, 190, 200]) == pytest.approx(
        [-0.02, -0.5, -0.8, -1.0]
    )


def test_l1_max_is_clipped_on_both_sides():
    assert evaluate_group("l1_max", ["p"] * 2, [True] * 2, [300, 1], l1_alpha=0.05) == [0.0, 1.0]


def test_laser_d_has_a_target_for_each_difficulty():
    # Shares of right paths: 3/4 easy (target 50), 2/4 medium (100), 1/4 hard (150).
    correct = [True, True, True, False] + [True, True, False, False] + [True, False, False, False]
    tokens = [50, 51, 100, 10] + [100, 101, 10, 10] + [150, 10, 10, 10]
    problem = [key for key in "abc" for _ in range(4)]
    values = evaluate_group("laser", problem, correct, tokens, target_lengths=[50, 100, 150])
    assert values == [0.5, 0, 0, 0] + [0.5, 0, 0, 0] + [0.5, 0, 0, 0]


def test_problems_are_apart_except_for_the_original_length_reward():
    problem, correct, tokens = ["p", "q", "p", "q"], [True] * 4, [100, 40, 120, 60]
    assert evaluate_group("length", problem, correct, tokens) == [0.5, 0.5, -0.5, -0.5]
    # 40 to 120 over both problems.
    assert evaluate_group("length_batch", problem, correct, tokens) == [-0.25, 0.5, -0.5, 0.25]
    assert evaluate_group("serial_decay", problem, correct, tokens) == [0.5, 0.5, 1.0, 1.0]


def test_density_has_no_cap():
    (func,) = get_reward_funcs(["density"], 100.0)
    columns = {"num_reflections": [3, 1, 2], "num_think_tokens": [100, 200, 0]}
    assert func(["x"] * 3, ["x"] * 3, **columns) == [3.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "name, changes, key",
    [
        ("laser", {"target_lengths": None}, "target_lengths"),
        ("l1_max", {"target_lengths": [0]}, "target_lengths"),
        ("truncated_accuracy", {"target_lengths": []}, "target_lengths"),
        ("overlong", {"overlong_buffer": None}, "overlong_buffer"),
        ("sigmoid_length", {"sigmoid_alpha": 0.0}, "sigmoid_alpha"),
    ],
)
def test_a_reward_needs_its_settings(name, changes, key):
    with pytest.raises(ValueError, match=f"'{name}', which needs a positive {key}"):
        get_reward_funcs([name], **{**SETTINGS, **changes})


def test_all_rewards_of_the_project_pass_their_trial():
    try_rewards(get_reward_funcs(list(REWARDS), tokens_per_reflection=100, **SETTINGS))


NO_COLUMN = r"reads \['num_words'\], which no response has; its columns may be problem_id, step"
OWN = {  # function, columns, and what is said
    "another column": (lambda words: words, ("num_words",), NO_COLUMN),
    "raises": (lambda text: [1 / 0], ("text",), "raised ZeroDivisionError"),
    "another signature": (lambda: [], ("text",), "raised TypeError"),
    "one number": (lambda text: 1.0, ("text",), "gave 1.0 for 2 responses; return a list with one"),
    "one too few": (lambda text: [1.0], ("text",), r"gave \[1.0\] for 2 responses"),
    "nothing": (lambda text: None, ("text",), "gave None for 2"),
    "a gap": (lambda text: [1.0, None], ("text",), r"gave \[1.0, None\]"),
    "words": (lambda text: text, ("text",), "gave .'Wait"),
    "NaN": (lambda text: [float("nan")] * 2, ("text",), r"gave \[nan, nan\]"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_reward_of_ones_own_that_cannot_be_is_found_before_anything_starts(case, monkeypatch):
    function, columns, words = OWN[case]
    monkeypatch.setitem(REWARDS, "own", rewards.Reward(function, columns))
    with pytest.raises(ValueError, match=f"the reward 'own' {words}"):
        try_rewards(get_reward_funcs(["accuracy", "own"]))


def test_a_reward_may_give_what_numpy_and_torch_have(monkeypatch):
    import torch

    monkeypatch.setitem(
        REWARDS, "own", rewards.Reward(lambda tokens: torch.tensor(tokens) / 4, ("num_tokens",))
    )
    (func,) = get_reward_funcs(["own"])
    assert func(["x"] * 2, ["x"] * 2, num_tokens=[1, 8]) == [0.25, 2.0]
    try_rewards([func])


def test_a_reward_that_is_no_number_later_ends_the_training_with_one_line():
    class Trainer:
        def is_world_process_zero(self) -> bool:
            return False  # any rank may have the response

    error = rewards.RewardError("the reward 'own' gave [nan] for 1 responses")
    with pytest.raises(SystemExit, match="error: the reward 'own' gave"):
        training.end(Trainer(), error)
