r"""Make a reasoning model from any instruct model and any problems with answers: the training rows
of both steps.

    python -m generation.bootstrap solver SAMPLES... --out solver.json
    python -m generation.bootstrap traces SAMPLES... --out traces.json

SAMPLES are files of `generation.generate` (split `math_cot`) with several responses a problem.

1. `solver`: right, short responses become completions (rejection sampling). Each ends in `So the
   answer is \boxed{}`.
2. `traces`: the solver's samples become reasoning traces in R1's format. A trace tries until two
   attempts agree, and then checks again, as an overthinking model does. Every trace ends with the
   right answer.

`rea_rl.sft` trains on both files. A model card of the rows is written next to each (`<out
stem>.md`).
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.generation_file import read_generations
from generation.prompts import ANSWER_HEADING, MATH_COT, THINK_END, format_problem
from generation.rendering import answer_of
from rea_core.checks import check_made, check_numbers, user_path
from rea_core.command import command
from rea_core.ownership import own_output
from rea_core.row_files import Row, write_json
from rea_core.rows import write_atomically

logger = logging.getLogger(__name__)

# Sentences between the attempts of a trace. {a} is the value that is kept, {b} the new one.
OPENINGS = (
    "Okay, let me work through this step by step.",
    "Okay, so I need to solve this problem.",
    "Alright, let me think about this carefully.",
    "Let me see. I need to find the answer to this problem.",
)
STATES = ("So the answer is {a}.",)
CHECKS = (
    "Wait, let me double-check this by solving it again.",
    "But wait, let me check that once more from the beginning.",
    "Let me check this by redoing it.",
    "Hmm, wait. Let me make sure that I read the problem correctly, so I'll solve it again.",
)
AGREES = (
    "So I get {a} again.",
    "That gives {a} as well, so it matches.",
    "So the answer is {a} again.",
)
DIFFERS = (
    "So now the answer is {b}, but before I had {a}. One of them must be wrong.",
    "So this time the answer is {b} instead of {a}. I made a mistake somewhere.",
    "So the answer would be {b}, which is different from {a}.",
)
RETRIES = (
    "Wait, let me work it out again more carefully.",
    "Let me check again, one step at a time.",
    "Hmm, but which one is right? Let me redo this carefully.",
)
EXTRAS = (
    "But let me verify this one more time.",
    "Alternatively, I can go through the problem another way to confirm.",
    "Wait, I want to be sure about that, so let me check it again.",
    "Let me check it once more, just to be sure.",
)
STAYS = (
    "Here I get {b}, but I got {a} twice before. That was a slip, so I'll stay with {a}.",
    "Now the answer is {b}, but two earlier attempts gave {a}. So I'll keep {a}.",
)
SETTLES = (
    "I got different answers each time. The attempt with {a} was the most careful one, so I'll go "
    "with {a}.",
    "My attempts don't agree, but the steps that lead to {a} fit the problem best. So I'll go with "
    "{a}.",
)
CLOSINGS = (
    "So I'm confident that the answer is {a}.",
    "Therefore, the answer is {a}.",
    "So the final answer is {a}.",
)

_BOX = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_BARE_NUMBER = re.compile(r"\\\(\s*(-?\d[\d,.]*)\s*\\\)")  # a number in math marks needs none
_MATH_MARKS = re.compile(r"[\\$()\[\]\s.*]+")
_STATEMENT = re.compile(
    r"^(so|thus|hence|therefore)?,? ?(the )?(final )?answer( is)?:? ", re.IGNORECASE
)
REPEATS = 3  # a line that is repeated so often in a response means a loop


@dataclass(frozen=True)
class Attempt:
    """One way to an answer: the solution without its box, and the value that it states."""

    text: str
    value: str
    right: bool


@dataclass
class TraceSettings:
    """How traces are composed. Raises ValueError for numbers out of their range."""

    max_attempts: int = 5
    # of 0, 1, 2, ... checks after two attempts agreed
    extra_weights: Sequence[float] = (1, 2, 3, 2, 1)
    # share of these checks that get a wrong value, after which the trace keeps the old one
    wrong_extra: float = 0.15
    # share of the traces whose first attempt is wrong, as far as the samples allow
    corrected_share: float = 0.4
    unsettled_share: float = 0.05  # share of the traces in which no two attempts agree
    max_per_problem: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(
            vars(self),
            positive=("max_attempts", "max_per_problem"),
            shares=("wrong_extra", "corrected_share", "unsettled_share"),
        )
        if self.max_attempts < 2:
            raise ValueError(
                f"max_attempts is {self.max_attempts}; two attempts must be able to agree: give 2 "
                "or more"
            )
        if not self.extra_weights or min(self.extra_weights) < 0 or not sum(self.extra_weights):
            raise ValueError(
                f"extra_weights is {list(self.extra_weights)}; give weights of 0 or more, not all 0"
            )


@dataclass
class Trace:
    """A composed trace, and what the card counts of it."""

    text: str
    value: str
    first_right: bool
    num_attempts: int
    num_extra: int
    settled: bool = True


Tried = tuple[Row, list[Attempt]]  # a problem and the attempts at it
Traced = tuple[Row, Trace]


def loops(text: str) -> bool:
    """Whether a response repeats a longer line, as a small model does that cannot stop."""
    lines = Counter(line.strip() for line in text.splitlines() if len(line.strip()) >= 12)
    return bool(lines) and max(lines.values()) >= REPEATS


def plain_solution(text: str) -> str:
    r"""A response up to its last box, without boxes, and without a last part that only states the
    answer.

    >>> plain_solution("48/2 = 24.\n\n48+24 = 72.\n\nSo the answer is \\boxed{72}.")
    '48/2 = 24.\n\n48+24 = 72.'
    """
    *_, last = _BOX.finditer(text)
    end = text.find("\n", last.end())
    text = text[: end if end >= 0 else len(text)]
    parts = [part.strip() for part in re.split(r"\n{2,}", text) if part.strip()]
    *before, line = "\n\n".join(parts).splitlines()
    if _only_states(line) and before:
        text = "\n".join(before).rstrip()
        # `The total is:` and a line with the box become one sentence.
        line = f"{text[:-1]} {_BOX.findall(line)[-1]}." if text.endswith(":") else text
    else:
        line = "\n".join([*before, line])
    return _BARE_NUMBER.sub(r"\1", _BOX.sub(r"\1", line)).strip()


def _only_states(line: str) -> bool:
    """Whether a line holds a box and no more than the words that announce it."""
    without = _STATEMENT.sub("", _BOX.sub("", line).strip())
    return _BOX.search(line) is not None and not _MATH_MARKS.sub("", without)


def read_attempts(
    rows: Iterable[Row], verdicts: Iterable[bool], min_tokens: int, max_tokens: int
) -> Iterator[Tried]:
    """Usable attempts by problem, shortest first: ended by themselves, with a box, without loops
    and code, and of so many tokens. There is a verdict per response, in order."""
    verdict = iter(verdicts)
    for row in rows:
        responses = sorted(
            ((response, next(verdict)) for response in row["responses"]),
            key=lambda pair: pair[0]["num_tokens"],
        )
        attempts: dict[str, Attempt] = {}
        for response, right in responses:
            text = response["text"]
            if (
                response["finish_reason"] != "stop"
                or not min_tokens <= response["num_tokens"] <= max_tokens
            ):
                continue
            if (
                "```" in text
                or loops(text)
                or not (boxes := _BOX.findall(text))
                or not boxes[-1].strip()
            ):
                continue
            solution = plain_solution(text)
            if solution.strip():
                attempts.setdefault(solution, Attempt(solution, boxes[-1].strip(), right))
        yield row, list(attempts.values())


def solver_rows(problems: Iterable[Tried], max_per_problem: int, template: str) -> list[Row]:
    """Prompt-completion rows of right attempts, the shortest of each problem."""
    return [
        {
            "prompt": user_message(row, template),
            "completion": f"{attempt.text}\n\nSo the answer is \\boxed{{{attempt.value}}}.",
        }
        for row, attempts in problems
        for attempt in [a for a in attempts if a.right][:max_per_problem]
    ]


def user_message(row: Row, template: str) -> list[dict[str, str]]:
    """Dialogue that asks the problem."""
    return [{"role": "user", "content": format_problem(row["problem"], template)}]


class Composer:
    """Composes traces from the attempts at one problem."""

    def __init__(self, settings: TraceSettings):
        self._settings = settings
        self._random = random.Random(settings.seed)

    def compose(self, attempts: Sequence[Attempt], first_right: bool) -> Trace | None:
        """A trace that ends right, whose first attempt is as asked; None if attempts allow none."""
        order = self._random.sample(list(attempts), len(attempts))
        first = next((a for a in order if a.right == first_right), None)
        if first is None:
            return None
        order.remove(first)
        order = [first, *order][: self._settings.max_attempts]
        votes: Counter[str] = Counter()
        for used, attempt in enumerate(order, 1):
            votes[_key(attempt)] += 1
            if votes[_key(attempt)] == 2:
                rest = [a for a in attempts if a not in order[:used]]
                return self._settled(order[:used], rest) if attempt.right else None
        return self._unsettled(order)

    def _pick(self, sentences: Sequence[str], **values: str) -> str:
        return self._random.choice(sentences).format(**values)

    def _settled(self, used: list[Attempt], rest: list[Attempt]) -> Trace:
        value = used[-1].value
        blocks = self._attempts(used)
        blocks[-1] += "\n" + self._pick(AGREES, a=value)
        weights = self._settings.extra_weights
        wanted = self._random.choices(range(len(weights)), weights)[0]
        extra = self._extras(rest, wanted)
        for attempt in extra:
            ending = self._pick(AGREES if attempt.right else STAYS, a=value, b=attempt.value)
            blocks.append(f"{self._pick(EXTRAS)} {attempt.text}\n{ending}")
        text = self._close(blocks, value, CLOSINGS)
        return Trace(text, value, used[0].right, len(used), len(extra))

    def _extras(self, rest: list[Attempt], wanted: int) -> list[Attempt]:
        right, wrong = ([a for a in rest if a.right == kind] for kind in (True, False))
        chosen = []
        for _ in range(wanted):
            pool = wrong if wrong and self._random.random() < self._settings.wrong_extra else right
            if pool:
                chosen.append(pool.pop(self._random.randrange(len(pool))))
        return chosen

    def _unsettled(self, used: list[Attempt]) -> Trace | None:
        right = [a for a in used if a.right]
        if not right or len(used) < 3:
            return None
        blocks = self._attempts(used)
        blocks[-1] += "\n" + self._pick(DIFFERS, a=used[-2].value, b=used[-1].value)
        blocks.append(self._pick(SETTLES, a=right[0].value))
        value = right[0].value
        text = self._close(blocks, value)
        return Trace(text, value, used[0].right, len(used), 0, settled=False)

    def _attempts(self, used: list[Attempt]) -> list[str]:
        """Attempts one after the other; the last one still lacks the sentence that ends it."""
        blocks = []
        for i, attempt in enumerate(used):
            begin = "" if i == 0 else self._pick(CHECKS if i == 1 else RETRIES) + " "
            end = ""
            if i == 0:
                end = "\n" + self._pick(STATES, a=attempt.value)
            elif i + 1 < len(used):
                end = "\n" + self._pick(DIFFERS, a=used[i - 1].value, b=attempt.value)
            blocks.append(begin + attempt.text + end)
        return blocks

    def _close(self, blocks: list[str], value: str, closings: Sequence[str] = ()) -> str:
        blocks = [self._pick(OPENINGS), *blocks]
        if closings:
            blocks.append(self._pick(closings, a=value))
        thinking = "\n\n".join(blocks)
        return f"{thinking}\n{THINK_END}\n\n{ANSWER_HEADING}\\boxed{{{value}}}"


def _key(attempt: Attempt) -> str:
    """Attempts with right answers agree; wrong ones if they are written alike."""
    return "" if attempt.right else attempt.value


def compose_all(problems: Sequence[Tried], settings: TraceSettings) -> list[Traced]:
    """Traces of all problems, those whose first attempt is wrong up to their share."""
    composer, found = Composer(settings), {True: [], False: []}
    for row, attempts in problems:
        seen: set[str] = set()
        for kind, traces in found.items():
            for _ in range(4 * settings.max_per_problem):
                trace = composer.compose(attempts, kind)
                if trace is not None and trace.text not in seen:
                    seen.add(trace.text)
                    traces.append((row, trace))
                if sum(r is row for r, _ in traces) == settings.max_per_problem:
                    break
    return _balanced(found[True], found[False], settings)


def _balanced(right: list, wrong: list, settings: TraceSettings) -> list[Traced]:
    """Shuffled traces with the wanted shares of corrected and of unsettled ones."""
    shuffle = random.Random(settings.seed).shuffle
    for traces in (right, wrong):
        shuffle(traces)
    share = settings.corrected_share
    if share:
        right = right[: max(int(len(wrong) * (1 - share) / share), 1)]
    wrong = wrong[: int(len(right) * share / (1 - share))] if share < 1 else wrong
    together = right + wrong
    settled = [pair for pair in together if pair[1].settled]
    unsettled = [pair for pair in together if not pair[1].settled]
    chosen = settled + unsettled[: int(len(settled) * settings.unsettled_share)]
    shuffle(chosen)
    return chosen


def trace_rows(traces: Iterable[Traced], template: str) -> list[Row]:
    """Prompt-completion rows; the chat template of the training recipe opens the thinking."""
    return [
        {"prompt": user_message(row, template), "completion": trace.text} for row, trace in traces
    ]


def trace_counts(traces: Sequence[Traced]) -> dict[str, float]:
    """Counts for log and card."""
    of = [trace for _, trace in traces]
    return {
        "traces": len(of),
        "problems": len({id(row) for row, _ in traces}),
        "first attempt wrong": sum(not t.first_right for t in of),
        "no two attempts agree": sum(not t.settled for t in of),
        "attempts until two agree, mean": round(sum(t.num_attempts for t in of) / len(of), 2),
        "checks after that, mean": round(sum(t.num_extra for t in of) / len(of), 2),
        "characters, mean": round(sum(len(t.text) for t in of) / len(of)),
    }


CARD = """# {name}

{what}

| | |
|---|---|
| made by | `{command}` |
| samples | {samples} |
| problems' licences | those of their sets |
{counts}
"""


def write_card(out: Path, what: str, samples: Sequence[Path], counts: dict[str, Any]) -> None:
    """`<out stem>.md`: what the rows are, and how they were made."""
    lines = CARD.format(
        name=out.stem,
        what=what,
        command="python -m generation.bootstrap " + " ".join(sys.argv[1:]),
        samples=", ".join(path.name for path in samples),
        counts="\n".join(f"| {key} | {value} |" for key, value in counts.items()),
    )
    write_atomically(out.with_suffix(".md"), lines.splitlines())


def read_problems(args: argparse.Namespace) -> list[Tried]:
    """Problems of all sample files with their usable attempts, verified."""
    from generation.math_verify import VerifierPool

    rows = [row for path in args.samples for row in read_generations(path)]
    with VerifierPool(args.num_workers, timeout=args.timeout) as pool:
        verdicts = [
            pool.submit(row["answer"], answer_of(response))
            for row in rows
            for response in row["responses"]
        ]
        right = [verdict.result() for verdict in verdicts]
    logger.info("%d of %d samples are right", sum(right), len(right))
    return list(read_attempts(rows, right, args.min_tokens, args.max_tokens))


# Flags of `traces`: fields of `TraceSettings`.
TRACE_FLAGS = {
    "max_attempts": "attempts that need not agree",
    "extra_weights": "weights of 0, 1, 2, ... further checks after two attempts agreed",
    "wrong_extra": "share of checks that get a wrong value",
    "corrected_share": "share of traces that begin with a wrong attempt",
    "unsettled_share": "share of traces in which no two attempts agree",
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Training rows that make a reasoning model from an instruct model."
    )
    steps = parser.add_subparsers(dest="step", required=True)
    defaults = TraceSettings()
    numbers = {
        "max_per_problem": (4, "rows of one problem at most"),
        "min_tokens": (40, "shorter samples are left out: they hardly reason"),
        "max_tokens": (320, "longer samples are left out"),
        "num_workers": (2, "processes that compare answers"),
        "timeout": (5.0, "seconds before an answer counts as wrong"),
    }
    for name, words in (
        ("solver", "right samples of the instruct model"),
        ("traces", "reasoning traces, made of attempts of the solver"),
    ):
        step = steps.add_parser(name, help=words, description=f"Training rows: {words}.")
        step.add_argument("samples", nargs="+", type=user_path, help="files of split math_cot")
        step.add_argument("--out", type=user_path, required=True, help="rows for rea_rl.sft")
        step.add_argument("--prompt_template", default=MATH_COT, help="as in the training recipe")
        for key, (value, words) in numbers.items():
            step.add_argument(f"--{key}", type=type(value), default=value, help=words)
    for key, words in TRACE_FLAGS.items():
        value = getattr(defaults, key)
        several = {"type": float, "nargs": "+"} if key == "extra_weights" else {"type": type(value)}
        step.add_argument(f"--{key}", default=value, help=words, **several)
    step.add_argument("--seed", type=int, default=0, help="of the choice of attempts and sentences")
    step.set_defaults(max_per_problem=defaults.max_per_problem)
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Write the rows and their card; exit code 1 with one line on stderr for a mistake."""
    args = parse_arguments(argv)
    format_problem("", args.prompt_template)
    check_numbers(vars(args), positive=("max_per_problem", "max_tokens", "num_workers", "timeout"))
    own_output(args.out, "out", args.samples)
    check_made(args.out, args.out.with_suffix(".md"), "`python -m generation.bootstrap ")
    if args.step == "traces":
        keys = (*TRACE_FLAGS, "max_per_problem", "seed")
        settings = TraceSettings(**{key: getattr(args, key) for key in keys})
        traces = compose_all(read_problems(args), settings)
        rows = trace_rows(traces, args.prompt_template)
        what = "Reasoning traces in R1's format, for supervised fine-tuning."
        counts = trace_counts(traces) if traces else {}
    else:
        rows = solver_rows(read_problems(args), args.max_per_problem, args.prompt_template)
        what = "Right responses of a model to problems, for supervised fine-tuning."
        counts = {"rows": len(rows)}
    if not rows:
        raise ValueError(
            f"{', '.join(map(str, args.samples))}: no rows can be made: too few responses are "
            f"right, end by themselves and have at most {args.max_tokens} tokens (max_tokens); "
            "sample more, or easier problems"
        )
    write_json(args.out, rows)
    write_card(args.out, what, args.samples, counts)
    logger.info(
        "wrote %s: %s", args.out, ", ".join(f"{key} {value}" for key, value in counts.items())
    )


if __name__ == "__main__":
    main()
