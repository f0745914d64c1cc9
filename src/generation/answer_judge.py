r"""A judge without a large model: a paragraph that states the gold answer as its result is a Right
Result.

    python -m generation.answer_judge --config recipes/generation/qwen_0.5b_reflection.yaml \
        --qaf PATHS \
        --split labeling_distill_use_asw --model_dir answer_judge --paragraph_tokenizer MODEL

It replaces `generation.generate` with a large judge: same flags, same prompts, same files, for
both judgements. `--model_dir` is only the name of its output folder. Which value a paragraph states
is read from its words; whether that is the gold answer is decided by `generation.math_verify`, or
by another verifier (`--verifier`).
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain

from generation.arguments import GenerateArguments
from generation.generate import generate
from generation.generation_file import REFUSED
from generation.prompts import REASONING, RESULT, RIGHT_RESULT, WRONG_RESULT
from generation.tasks import Keep, Task
from generation.unanswered import without_answer
from generation.verifiers import MATH, check_name
from generation.verifiers.opening import AnyPool, check_verifier, open_verifier
from generation.verifiers.pool import Asked, FunctionPool, facts_of
from rea_core.command import command
from rea_core.options import option
from rea_core.recipe import RecipeParser
from rea_core.row_files import Row

MOST_WAITING = 256  # tasks whose values are compared

_BOX = r"\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
# A value: a box, a formula between dollars, a number with its signs, or up to four words.
_VALUE = (
    rf"(?:{_BOX}|\$[^$\n]+\$|\\\([^\n]+?\\\)|\*\*[^*\n]+\*\*"
    r"|[-+]?\\?\$?\s?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?\s?\\?%?|\w+(?: \w+){0,3}?)"
)
_END = r"(?=$|\n|[.;!?](?:\s|$)|,(?:\s|$)|\s)"
_FILLER = r"(?:\s+(?:indeed|therefore|then|now|just|simply|still|again|equal to|exactly))?"
# Sentences that announce the result of the whole problem. The last one of a paragraph says which
# value it states.
_STATEMENTS = re.compile(
    "|".join(
        (
            r"\b(?:answer|final "
            rf"result|result)\b[^.\n=:]{{0,40}}?(?:\bis\b|\bbe\b|=|:){_FILLER}:?\s*"
            rf"(?:{_FILLER}\s*)?(?P<answer>{_VALUE}){_END}",
            r"\b(?:I|we)(?:'ve)? (?:now |still |again |also )?(?:get|got|obtain|arrive at|end up "
            rf"with)\s+(?P<get>{_VALUE})\s+"
            r"(?:again|as well|too|once more|instead)\b",
            rf"\b(?:gives|is|makes)\s+(?P<gives>{_VALUE})\s+(?:again|as well|once more)\b",
            rf"\b(?:stay|stick|go|stuck) with\s+(?P<stay>{_VALUE}){_END}",
            rf"\bkeep\s+(?P<keep>{_VALUE}){_END}",
            rf"(?P<box>{_BOX})",
        )
    ),
    re.IGNORECASE,
)
# A sentence that concludes may state the result, or an intermediate value: it only counts where
# that is the gold answer.
_CONCLUDES = re.compile(
    r"(?:^|[.!?]\s+|\n)\**(?:so|thus|hence|therefore|in total|altogether|finally|in "
    r"conclusion|(?:this|that|which) means)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-+]?\\?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?\\?%?")
_WRAPPING = re.compile(r"^(?:\*\*|\$|\\\(|\s)+|(?:\*\*|\$|\\\)|[.,;:]|\s)+$")


@dataclass(frozen=True)
class Stated:
    """Values that a paragraph states: announced as the answer, and last in a conclusion."""

    announced: str | None
    concluded: str | None


def stated_values(paragraph: str) -> Stated:
    """Read which values a paragraph states as the result of its problem.

    >>> stated_values("24 + 48 = 72. So the answer is 72.")
    Stated(announced='72', concluded='72')
    >>> stated_values("She sold 48 / 2 = 24 clips in May.")
    Stated(announced=None, concluded='24')
    """
    announced = None
    for match in _STATEMENTS.finditer(paragraph):
        announced = next(value for value in match.groups() if value is not None)
    return Stated(announced and _clean(announced), _conclusion(paragraph))


def _clean(value: str) -> str:
    if box := re.search(_BOX, value):
        return box[0].removeprefix("\\boxed{")[:-1]
    return _WRAPPING.sub("", value)


def _conclusion(paragraph: str) -> str | None:
    """Last number of the last sentence that concludes, or of a last line with an equation."""
    last_line = paragraph.strip().splitlines()[-1] if paragraph.strip() else ""
    starts = [match.start() for match in _CONCLUDES.finditer(paragraph)]
    text = paragraph[starts[-1] :] if starts else last_line if "=" in last_line else ""
    numbers = _NUMBER.findall(text)
    return numbers[-1].rstrip(",") if numbers else None


class AnswerJudge:
    """Labels of paragraphs by the gold answer.

    Args:
        pool: compares values with the gold answer, as if they were whole responses.
    """

    def __init__(self, pool: AnyPool):
        self._pool = pool

    def labels(
        self, paragraphs: Sequence[str], gold: str | list[str], use_answer: bool = True
    ) -> list[str]:
        """One label per paragraph, as `generation.labeling_distill_utils` reads them from a judge's
        reply.

        `gold` are the facts of the problem if the verifier is a function. Without the answer every
        announced value is a Result.
        """
        return self._open_labels(paragraphs, gold, use_answer)()

    def _open_labels(
        self, paragraphs: Sequence[str], gold: str | list[str], use_answer: bool
    ) -> Callable[[], list[str]]:
        """The same, as a function that waits for the comparisons, which begin at once."""
        stated = [stated_values(paragraph) for paragraph in paragraphs]
        if not use_answer:
            return lambda: [RESULT if values.announced else REASONING for values in stated]
        # An announced value decides: `the answer is 24, but before I had 72` concludes with another
        # one.
        verdicts = {
            v: self._verdict(gold, v)
            for values in stated
            if (v := values.announced or values.concluded)
        }

        def label(values: Stated) -> str:
            value = values.announced or values.concluded
            if value and verdicts[value].result():
                return RIGHT_RESULT
            return (
                WRONG_RESULT
                if values.announced and _looks_like_value(values.announced)
                else REASONING
            )

        return lambda: [label(values) for values in stated]

    def _verdict(self, gold: str, value: str) -> Future[bool]:
        if isinstance(self._pool, FunctionPool):
            return self._pool.submit(gold, Asked(value, "closed"))
        return self._pool.submit(gold, value)

    def open_reply(self, row: Row) -> Callable[[], str]:
        """Reply to a chunk of numbered parts, or to one part of the second judgement, as a function
        that waits for the comparisons, which begin at once."""
        is_second = "paragraphs" not in row
        parts, use_answer = (
            ([row["paragraph"]], True) if is_second else (row["paragraphs"], row["use_answer"])
        )
        gold = facts_of(row) if isinstance(self._pool, FunctionPool) else row["answer"]
        labels = self._open_labels(parts, gold, use_answer)
        return lambda: _yes_or_no(*labels()) if is_second else _numbered(labels())


def _yes_or_no(label: str) -> str:
    return "Yes" if label == RIGHT_RESULT else "No"


def _numbered(labels: Sequence[str]) -> str:
    return "\n\n".join(
        f"[{number}]. Think: {_REASONS[label]}\nLabel: {label}"
        for number, label in enumerate(labels, 1)
    )


_REASONS = {
    REASONING: "No result of the whole problem is stated.",
    RESULT: "A result is stated.",
    RIGHT_RESULT: "The stated result is the gold answer.",
    WRONG_RESULT: "The stated result is another one than the gold answer.",
}


def _looks_like_value(value: str) -> bool:
    """Whether an announced value is a number or formula, and not `not clear yet`."""
    return any(character.isdigit() or character == "\\" for character in value)


@dataclass
class JudgeArguments(GenerateArguments):
    """Those of `generation.generate`, and the verifier."""

    verifier: str | None = option(
        None, "Which stated value is right: math (default), exact, choice, or a function."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.verifier or MATH)
        if self.verifier == "program":
            raise ValueError(
                "verifier is program, but paragraphs state values and no programs; take a large "
                "judge (generation.generate)"
            )


def missing_columns(row: Row) -> list[str]:
    """Columns that a judge needs, and the row has not as texts."""
    values = {"answer": (str, list)} | ({} if "paragraphs" in row else {"paragraph": str})
    return [repr(key) for key, kind in values.items() if not isinstance(row.get(key), kind)]


def respond(args: JudgeArguments, tasks: Iterator[Task], keep: Keep) -> None:
    """Answer all tasks of both judgements. Raises ValueError for splits that are no judgement, and
    for a verifier that cannot judge."""
    if args.split in ("math_cot", "labeling"):
        raise ValueError(
            f"split is {args.split}, but this is a judge: give labeling_distill* or json"
        )
    # replies whose values are still compared
    waiting: deque[tuple[int, Callable[[], str]]] = deque()
    first, name = next(tasks), args.verifier or MATH
    check_verifier(name, facts_of(first.row))
    with open_verifier(name, max((os.cpu_count() or 2) // 2, 1)) as pool:
        judge = AnswerJudge(pool)

        def settle() -> None:
            index, reply = waiting.popleft()
            keep(index, [{"text": reply(), "num_tokens": 0, "finish_reason": "stop"}])

        for task in chain([first], tasks):
            if missing := missing_columns(task.row):
                cause = f"{args.qaf}: row {task.row['id']!r} has no {' and no '.join(missing)}"
                keep(task.index, without_answer(args, REFUSED, f"{cause}, which is judged"))
                continue
            waiting.append((task.index, judge.open_reply(task.row)))
            if len(waiting) > MOST_WAITING:
                settle()
        while waiting:
            settle()


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or rows."""
    (args,) = RecipeParser(JudgeArguments).parse_args_and_config(argv)
    generate(args, respond)


if __name__ == "__main__":
    main()
