"""Instruction dialogues about numbered parts of a trace: what `Miniature-Instruct`, the base of the
reflection model, is taught.

The tasks ask for one short answer a part (the last number, yes or no in words that the user
wants, a count). None of them is the reflection model's own task: that one is learned from the
labels of the judge, as with Qwen2.5-7B-Instruct.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from miniature.world import LEVELS, Problem, make_problem, make_trace

# Words that the user may want instead of yes and no. A word that never occurs has an embedding that
# no adapter can tell from the other unused ones, so the reflection model's labels are among them,
# though never together.
LABEL_WORDS = """
    Result Think Reasoning Problem Start Good Wrong Right Label Hmm start result mistake
    order long easy part coins books stones
""".split()

_RESULT = re.compile(r"result is (\d+)")


def stated_number(part: str) -> str | None:
    """The last `result is N` of a part, or None."""
    found = _RESULT.findall(part)
    return found[-1] if found else None


def _last_number(problem: Problem, parts: list[str]) -> list[str]:
    return [(re.findall(r"\d+", part) or ["none"])[-1] for part in parts]


def _states_a_result(problem: Problem, parts: list[str]) -> list[str]:
    return ["no" if stated_number(part) is None else "yes" for part in parts]


def _agrees_with_last(problem: Problem, parts: list[str]) -> list[str]:
    last = next((number for part in reversed(parts) if (number := stated_number(part))), None)
    return ["yes" if last is not None and stated_number(part) == last else "no" for part in parts]


def _is_true(problem: Problem, parts: list[str]) -> list[str]:
    return ["yes" if stated_number(part) == str(problem.answer) else "no" for part in parts]


def _num_lines(problem: Problem, parts: list[str]) -> list[str]:
    return [str(part.count("\n") + 1) for part in parts]


Task = tuple[tuple[str, ...], Callable[[Problem, list[str]], list[str]]]
TASKS: tuple[Task, ...] = (
    (
        (
            "For every part, give the last number in it.",
            "Read the parts of the solution. Write the last number of each part.",
        ),
        _last_number,
    ),
    (
        (
            "Does the part state a result? Answer yes or no for every part.",
            "Label each part of the solution: yes if it states a result, otherwise no.",
        ),
        _states_a_result,
    ),
    (
        (
            "Which parts state the same result as the end of the solution? Answer yes or no for "
            "each part.",
            "Label every part: yes if its result is the one that the solution ends with, otherwise "
            "no.",
        ),
        _agrees_with_last,
    ),
    (
        (
            "Which parts of the solution state the right result of the problem? Answer yes or no "
            "for each part.",
            "Label each numbered part: yes if it reaches the correct final result of the problem, "
            "no if it does not.",
        ),
        _is_true,
    ),
    (
        (
            "Count the lines of every part.",
            "For each part of the reasoning, give its number of lines.",
        ),
        _num_lines,
    ),
)
TASK_WEIGHTS = (1, 2, 4, 4, 1)


def numbered(items: list[str], separator: str) -> str:
    """Items as `[1]. first`, `[2]. second`, ... joined by `separator`."""
    return separator.join(f"[{number}]. {item}" for number, item in enumerate(items, 1))


def _in_other_words(
    instruction: str, answers: list[str], rng: random.Random
) -> tuple[str, list[str]]:
    """The same task with two random words instead of yes and no."""
    words = {"Result", "Think"}
    while words == {"Result", "Think"}:
        yes, no = rng.sample(LABEL_WORDS, 2)
        words = {yes, no}
    return f"{instruction} Write {yes} for yes and {no} for no.", [
        yes if answer == "yes" else no for answer in answers
    ]


def make_dialogue(rng: random.Random) -> tuple[str, str]:
    """One random dialogue: the user's message and the assistant's reply."""
    problem = make_problem(rng.choice(LEVELS), rng)
    parts = make_trace(problem, rng).thinking.split("\n\n")
    wordings, solve = rng.choices(TASKS, TASK_WEIGHTS)[0]
    instruction, answers = rng.choice(wordings), solve(problem, parts)
    if set(answers) <= {"yes", "no"} and rng.random() < 0.6:
        instruction, answers = _in_other_words(instruction, answers, rng)
    blocks = [
        instruction,
        f"Problem: {problem.question}",
        f"Solution:\n\n{numbered(parts, chr(10) * 2)}",
    ]
    if rng.random() < 0.5:  # the instruction before or after the material
        blocks.append(blocks.pop(0))
    return "\n\n".join(blocks), numbered(answers, "\n")
