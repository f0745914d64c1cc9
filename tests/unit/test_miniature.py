"""The miniature's world: problems, slips, traces and files, against values worked out by hand
and an independent solver."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from generation.stated_results import stated_result, stated_results
from miniature.build import SPLITS, draw_splits, write_problems
from miniature.oracle import boxed_answer
from miniature.world import (
    LEVELS,
    NUM_STEPS,
    apply_step,
    carries,
    forget_carry,
    make_problem,
    make_trace,
)

DATASET = Path(__file__).parents[2] / "dataset" / "miniature"


@pytest.fixture(scope="module")
def splits():
    return draw_splits(0)


@pytest.mark.parametrize(
    "value, step, result, carry, slipped",
    [
        (27, ("+", 5), 32, True, 22),  # 7 + 5 carries; forgotten, the ten is missing
        (27, ("+", 2), 29, False, 19),
        (42, ("-", 5), 37, True, 47),  # 2 - 5 borrows; forgotten, the ten stays
        (47, ("-", 5), 42, False, 52),
        (16, ("*", 2), 32, True, 22),
        (14, ("*", 2), 28, False, 18),
        (5, ("+", 4), 9, False, 9),  # the wrong value would be below 0
        (96, ("-", 3), 93, False, 93),  # above 99
    ],
)
def test_steps_by_hand(value, step, result, carry, slipped):
    assert apply_step(value, step) == result
    assert carries(value, step) == carry
    assert forget_carry(value, step) == slipped


def test_committed_problems_follow_from_the_seed(splits, tmp_path):
    write_problems(splits, tmp_path)
    for line in (DATASET / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((DATASET / name).read_bytes()).hexdigest() == digest
        assert (tmp_path / name).read_bytes() == (DATASET / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "SHA256SUMS",
        *(f"{name}.json" for name in SPLITS),
    }


def test_no_question_is_in_two_splits(splits):
    questions = [problem.question for problems in splits.values() for problem in problems]
    assert len(set(questions)) == len(questions) == sum(size for size, _ in SPLITS.values())


def test_levels_of_the_splits(splits):
    assert Counter(p.level for p in splits["test"]) == dict.fromkeys(LEVELS, 200)
    shares = Counter(p.level for p in splits["train_rl"])
    assert shares == {1: 200, 2: 200, 3: 100, 4: 150, 5: 350}


def test_answers_by_reading_the_questions():
    """Expressions and instructions are solved again from their text alone."""
    solved = 0
    for row in json.loads((DATASET / "test.json").read_text()):
        if row["problem"].startswith("Compute "):
            terms = row["problem"].removeprefix("Compute ").rstrip(".")
        elif row["problem"].startswith("Start with "):
            words = re.findall(r"(Start with|Add|Subtract|Multiply by) (\d+)", row["problem"])
            signs = {"Start with": "", "Add": "+", "Subtract": "-", "Multiply by": "*"}
            terms = "".join(signs[word] + number for word, number in words)
        else:
            continue
        assert in_order(terms) == int(row["answer"]), row
        solved += 1
    assert solved > 500


def in_order(terms: str) -> int:
    """Value of a chain such as 7+2*3, step by step from the left, brackets or not."""
    start, *steps = re.findall(r"[-+*]?\d+", terms.replace("(", "").replace(")", ""))
    value = int(start)
    for step in steps:
        value = {
            "+": value + int(step[1:]),
            "-": value - int(step[1:]),
            "*": value * int(step[1:]),
        }[step[0]]
    return value


@pytest.mark.parametrize("level", LEVELS)
def test_traces_state_results_and_answer_with_the_last(level):
    rng = random.Random(level)
    wrong_first = 0
    for _ in range(200):
        problem = make_problem(level, rng)
        assert len(problem.steps) == NUM_STEPS[level]
        trace = make_trace(problem, rng)
        results = [result for _, result in stated_results(trace.thinking)]
        assert results and boxed_answer(trace.final) == results[-1]
        assert set(results) <= set(trace.results)
        wrong_first += results[0] != problem.answer
        labels = [stated_result(p) == problem.answer for p in trace.thinking.split("\n\n")]
        assert sum(labels) == results.count(problem.answer)
    assert (wrong_first == 0) == (level < 3)  # easy first passes never slip, the others do


def test_stated_result_is_the_last_of_a_paragraph():
    assert stated_result("The result is 4.\nSo the result is 12.") == 12
    assert stated_result("12+3=15") is None
