"""The miniature's world: chain-arithmetic problems of five levels, and R1-like reasoning traces
that overthink them.

A trace restates the problem, computes a first result, and then re-checks it again and again. Two
kinds of mistakes make some of the re-checks necessary:

- Levels 3 and 4: wherever a digit is carried, the first pass forgets the carry with probability
  `CARRY_SLIP`, which is small: if a first result is right three times in four, the method's own
  rewards favour stopping there unchecked.
- Level 5: the first pass takes the first two or three steps in one line. A small model cannot do
  three in its head: its first result is wrong most of the time, with any training; only
  going through the steps one by one finds the right one. The level can be seen in the problem (six
  steps), so a policy can learn to check where it pays; traces hardly ever end there without any
  check.

Reflection words (wait, alternatively, check, but) occur before the first result too, as they do in
real traces.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

LEVELS = (1, 2, 3, 4, 5)
NUM_STEPS = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6}
NUM_CARRIES = {1: (0,), 2: (0,), 3: (1, 2), 4: (2, 3)}
TWO_DIGIT_OPERANDS = {5: (0, 1, 2, 3)}

CARRY_SLIP = 0.06  # probability of a forgotten carry in a first pass (levels 3 and 4)
MERGE_SLIP = 0.3  # probability of a wrong value in a merged line (level 5)
CHECK_SLIP = 0.03  # probability of a forgotten carry in a re-check

# Number of re-checks after a result: what makes the model overthink on every level.
NUM_CHECKS = {
    1: ((0, 1, 2, 3, 4), (0.07, 0.15, 0.28, 0.30, 0.20)),
    2: ((0, 1, 2, 3, 4), (0.07, 0.15, 0.28, 0.30, 0.20)),
    3: ((0, 1, 2, 3, 4), (0.06, 0.18, 0.30, 0.28, 0.18)),
    4: ((0, 1, 2, 3, 4), (0.05, 0.20, 0.30, 0.28, 0.17)),
    # a hasty first pass is hardly ever trusted
    5: ((0, 1, 2, 3, 4), (0.005, 0.295, 0.35, 0.25, 0.10)),
}
CHECKS_AFTER_CORRECTION = ((1, 2, 3), (0.4, 0.4, 0.2))

NAMES = "Tom Mia Sam Ana Leo Eva Max Zoe".split()
ITEMS = "apples coins books cards stones pens".split()
INVERSE = {"+": "-", "-": "+", "*": "/"}

Step = tuple[str, int]  # (operator, operand)


@dataclass(frozen=True)
class Problem:
    """One chain-arithmetic problem: `start`, then `steps` one after the other; every
    intermediate value lies in 1..99."""

    question: str
    start: int
    steps: tuple[Step, ...]
    answer: int
    level: int
    subject: str  # noun of the final sentence


@dataclass
class Trace:
    """One reasoning trace: `thinking` (between the think tags) and `final` (after them), with
    the results it states."""

    thinking: str
    final: str
    results: list[int] = field(default_factory=list)


def apply_step(value: int, step: Step) -> int:
    """Value after one step."""
    operator, operand = step
    if operator == "+":
        return value + operand
    if operator == "-":
        return value - operand
    return value * operand if operator == "*" else value // operand


def carries(value: int, step: Step) -> bool:
    """Whether the unit digits of this step carry (or borrow)."""
    operator, operand = step
    if operator == "+":
        return value % 10 + operand % 10 >= 10
    if operator == "-":
        return value % 10 < operand % 10
    return operator == "*" and value % 10 * operand >= 10


def forget_carry(value: int, step: Step) -> int:
    """The one wrong value of a step that carries; the right one if that would leave 0..99."""
    right = apply_step(value, step)
    wrong = right + 10 if step[0] == "-" else right - 10
    return wrong if 0 <= wrong <= 99 else right


# --- problems -------------------------------------------------------------------------------------


def _draw_step(rng: random.Random, level: int, two_digits: bool) -> Step:
    if two_digits:
        return rng.choice("+-"), rng.randint(11, 38)
    operator = rng.choice("++--*") if level in (3, 4) else rng.choice("+-")
    return operator, 2 if operator == "*" else rng.randint(2, 9)


def _draw_steps(rng: random.Random, level: int, start: int) -> list[Step] | None:
    """Steps with values in 1..99 and the carries of the level; None if the draw got stuck."""
    num_steps = NUM_STEPS[level]
    wide = set(rng.sample(range(num_steps), rng.choice(TWO_DIGIT_OPERANDS.get(level, (0,)))))
    carrying = (
        set(rng.sample(range(num_steps), rng.choice(NUM_CARRIES[level])))
        if level in NUM_CARRIES
        else None
    )
    value, steps = start, []
    for position in range(num_steps):
        for _ in range(60):
            step = _draw_step(rng, level, position in wide)
            fits = 1 <= apply_step(value, step) <= 99 and (step[0] != "*" or value > 4)
            if fits and (carrying is None or carries(value, step) == (position in carrying)):
                break
        else:
            return None
        steps.append(step)
        value = apply_step(value, step)
    return steps if sum(operator == "*" for operator, _ in steps) <= 1 else None


def make_problem(level: int, rng: random.Random) -> Problem:
    """One random problem of `level` (1 to 5) in one of three surface forms."""
    steps = None
    while steps is None:
        start = rng.randint(5, 40 if level == 1 else 60)
        steps = _draw_steps(rng, level, start)
    answer = start
    for step in steps:
        answer = apply_step(answer, step)
    form = rng.choice((_instructions, _story, _expression))
    question, subject = form(start, steps, rng)
    return Problem(question, start, tuple(steps), answer, level, subject)


def _instructions(start: int, steps: list[Step], rng: random.Random) -> tuple[str, str]:
    verb = {"+": "Add {}.", "-": "Subtract {}.", "*": "Multiply by {}."}
    body = " ".join(verb[operator].format(operand) for operator, operand in steps)
    return f"Start with {start}. {body} What is the result?", "The result is {}."


def _story(start: int, steps: list[Step], rng: random.Random) -> tuple[str, str]:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    verbs = {
        "+": ("buys {} more.", "finds {} more."),
        "-": ("gives away {}.", "loses {}."),
        "*": ("makes it {} times as many.",),
    }
    body = " ".join(
        f"{name} {rng.choice(verbs[operator]).format(operand)}" for operator, operand in steps
    )
    return (
        f"{name} has {start} {item}. {body} How many {item} does {name} have?",
        f"{name} has {{}} {item}.",
    )


def _expression(start: int, steps: list[Step], rng: random.Random) -> tuple[str, str]:
    text = str(start)
    for operator, operand in steps:
        text = f"({text})*{operand}" if operator == "*" else f"{text}{operator}{operand}"
    return f"Compute {text}.", "The result is {}."


# --- traces ---------------------------------------------------------------------------------------


def _run(
    problem: Problem, rng: random.Random, slip: float, first: int = 0, value: int | None = None
) -> tuple[list[str], int] | None:
    """Lines and result of a pass from step `first` on; None if mistakes led out of 0..150."""
    value, lines = problem.start if value is None else value, []
    for step in problem.steps[first:]:
        slipped = slip and carries(value, step) and rng.random() < slip
        result = forget_carry(value, step) if slipped else apply_step(value, step)
        if not 0 <= result <= 150:
            return None
        lines.append(f"{value}{step[0]}{step[1]}={result}")
        value = result
    return lines, value


def num_merged_steps(problem: Problem) -> int:
    """Steps in the first line of a first pass of level 5: two if one has two digits, else three."""
    return 2 if any(operand > 9 for _, operand in problem.steps[:2]) else 3


def _run_merged(problem: Problem, rng: random.Random) -> tuple[list[str], int] | None:
    """Lines and result of a first pass of level 5, whose first line merges steps, often wrongly."""
    merged, value = problem.steps[: num_merged_steps(problem)], problem.start
    for step in merged:
        value = apply_step(value, step)
    if rng.random() < MERGE_SLIP:
        value += rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    rest = _run(problem, rng, 0, first=len(merged), value=max(value, 0))
    if rest is None:
        return None
    steps = "".join(f"{operator}{operand}" for operator, operand in merged)
    line = f"{problem.start}{steps}={max(value, 0)}"
    return [line, *rest[0]], rest[1]


def _setup(problem: Problem, rng: random.Random) -> str:
    steps = ", ".join(f"{operator}{operand}" for operator, operand in problem.steps)
    head = rng.choice(
        (
            "Okay, so I need to follow the steps.",
            "Alright, I need to find the result.",
            "Okay, let me work through the problem.",
            "Okay, but first I read the problem.",
            "Wait, let me read the problem first.",
            "Let me check what the problem says.",
        )
    )
    tail = rng.choice(
        (
            "",
            "",
            "",
            " But the order matters.",
            " Let me check each step as I go.",
            " I have to take care, but it is not long.",
        )
    )
    return f"{head} Start {problem.start}: {steps}.{tail}"


def _first_pass(problem: Problem, rng: random.Random) -> tuple[str, int]:
    if problem.level == 5:
        head = rng.choice(
            (
                "It is long, but I can take some steps at once.",
                "First, quickly, some steps at once.",
                "Some steps at once:",
            )
        )
    else:
        head = rng.choice(
            (
                "First, go step by step.",
                "Let me compute it.",
                "Step by step:",
                "It is easy, but go step by step.",
            )
        )
    run = None
    while run is None:
        slip = CARRY_SLIP if problem.level >= 3 else 0
        run = _run_merged(problem, rng) if problem.level == 5 else _run(problem, rng, slip)
    lines, result = run
    closing = rng.choice(("So the result is {}.", "That means the result is {}."))
    return "\n".join((head, *lines, closing.format(result))), result


def _check_last_step(
    problem: Problem, rng: random.Random, lines: list[str], current: int
) -> tuple[str, bool]:
    head = rng.choice(
        ("But let me check the last step.", "Wait, let me look at the last step again.")
    )
    return f"{head}\n{lines[-1]}\nYes, the result is {current}.", True


def _check_backwards(
    problem: Problem, rng: random.Random, lines: list[str], current: int
) -> tuple[str, bool]:
    head = rng.choice(
        (
            f"Alternatively, I can work backwards from {current}.",
            f"Let me check by going back from {current}.",
        )
    )
    value, out = current, [head]

    def mistake(cause: str) -> tuple[str, bool]:
        return "\n".join((*out, f"{cause}, so there is a mistake.")), False

    for operator, operand in reversed(problem.steps):
        step = (INVERSE[operator], operand)
        if operator == "*" and value % operand:
            return mistake(f"{value}/{operand} is not whole")
        slipped = rng.random() < CHECK_SLIP and operator != "*" and carries(value, step)
        result = forget_carry(value, step) if slipped else apply_step(value, step)
        if result < 0:
            return mistake(f"{value}{step[0]}{operand} is below 0")
        out.append(f"{value}{step[0]}{operand}={result}")
        value = result
    if value == problem.start:
        return "\n".join((*out, f"This is the start, so the result is {current}.")), True
    return mistake(f"But the start was {problem.start}")


def _check_all_steps(
    problem: Problem, rng: random.Random, lines: list[str], current: int
) -> tuple[str, bool]:
    head = rng.choice(
        (
            "Wait, let me check that again.",
            "Wait, maybe I made a mistake. Compute it again.",
            "But let me check all steps once more.",
            "Alternatively, do it once more.",
        )
    )
    again, result = _run(problem, rng, CHECK_SLIP) or _run(problem, rng, 0)
    if result == current:
        end = rng.choice(("Yes, the result is {}.", "Again the result is {}."))
        return "\n".join((head, *again, end.format(current))), True
    return "\n".join((head, *again, f"Hmm, this gives {result} but before I had {current}.")), False


def _careful_pass(problem: Problem, rng: random.Random) -> tuple[str, list[str]]:
    lines, result = _run(problem, rng, 0)
    head, end = "Let me go slowly and be careful.", f"So the result is {result}."
    return "\n".join((head, *lines, end)), lines


def make_trace(problem: Problem, rng: random.Random) -> Trace:
    """One random trace of `problem`; its last stated result is its answer."""
    text, current = _first_pass(problem, rng)
    paragraphs, results = [_setup(problem, rng), text], [current]
    lines = text.split("\n")[1:-1]
    pending = rng.choices(*NUM_CHECKS[problem.level])[0]
    while pending > 0:
        pending -= 1
        check = rng.choices(
            (_check_last_step, _check_backwards, _check_all_steps),
            (0 if problem.level == 5 else 0.3, 0.25, 0.45),
        )[0]
        text, agrees = check(problem, rng, lines, current)
        paragraphs.append(text)
        if not agrees:
            text, lines = _careful_pass(problem, rng)
            paragraphs.append(text)
            current = int(lines[-1].rpartition("=")[2])
            pending = rng.choices(*CHECKS_AFTER_CORRECTION)[0]
        results.append(current)
    if rng.random() < 0.6:
        paragraphs.append(
            f"{rng.choice(('I am confident.', 'Good, that settles it.'))} The result is {current}."
        )
        results.append(current)
    return Trace("\n\n".join(paragraphs), _final(problem, current, rng), results)


def _final(problem: Problem, current: int, rng: random.Random) -> str:
    sentence = problem.subject.format(current)
    if rng.random() < 0.6:  # the wording that a revision forces, so that the model knows it
        return f"**Final Answer:**\n\n{sentence} \\boxed{{{current}}}"
    return f"{sentence}\n\nThe final answer is \\boxed{{{current}}}"


def completion_text(trace: Trace, rng: random.Random) -> str:
    """The trace after `<think>\\n`, without the end-of-sequence token."""
    return trace.thinking + rng.choice(("\n", "\n\n")) + "</think>\n\n" + trace.final
