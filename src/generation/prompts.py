"""Every prompt string of the project: the only place where text for a model is put together."""

from __future__ import annotations

import string

Messages = list[dict[str, str]]  # of a chat: role and content

THINK_START = "<think>"
THINK_END = "</think>"

ANSWER_HEADING = "**Final Answer:**\n\n"
# Ends a thinking that was cut. If the kept ids already end in a newline (`.\n\n` is one token in
# Qwen's tokenizers), the variant without the leading newline follows instead, see `forced_answer`.
# Other models have other markers, see `generation.markers`.
FORCED_ANSWER = f"\n{THINK_END}\n\n{ANSWER_HEADING}"

MATH_COT = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."

# Forms of the reflection model's reply: a numbered line, or one word a paragraph; and the begin of
# the reply, from which the model continues.
LONG, COMPACT = REFLECTION_REPLIES = ("long", "compact")
REFLECTION_PREFILL = "[1]."
REFLECTION_PREFILLS = {LONG: REFLECTION_PREFILL, COMPACT: "Labels:"}
_REFLECTION_INSTRUCTIONS = {
    form: f"The reasoning below is split into numbered parts. Write one {unit} for each part: "
    "Result if it states a result for the problem, Think otherwise."
    for form, unit in ((LONG, "line"), (COMPACT, "word"))
}
_PROBLEM_HEADING = "# Problem"
_GOLD_HEADING = "# Gold answer"
_REASONING_HEADING = "# Reasoning"
_PART_HEADING = "# Part"

# The judge's labels. Without the gold answer it cannot tell right from wrong, so it is not asked
# to.
RIGHT_RESULT = "Right Result"
WRONG_RESULT = "Wrong Result"
RESULT = "Result"
REASONING = "Reasoning"
_JUDGE_INSTRUCTION = (
    "The reasoning below is split into numbered parts. For each part, in order, write two "
    "lines:\n\n"
    "[i]. Think: in one sentence, what the part does\nLabel: {labels}\n\n{meanings}\n"
    f"{REASONING}: everything else: planning, steps, intermediate values, doubts."
)
_JUDGE_WITH_ANSWER = _JUDGE_INSTRUCTION.format(
    labels=f"{REASONING}, {RIGHT_RESULT} or {WRONG_RESULT}",
    meanings=f"{RIGHT_RESULT}: the part states a result for the whole problem, and it equals the "
    "gold answer.\n"
    f"{WRONG_RESULT}: the part states a result for the whole problem, and it differs from the gold "
    "answer.",
)
_JUDGE_WITHOUT_ANSWER = _JUDGE_INSTRUCTION.format(
    labels=f"{REASONING} or {RESULT}",
    meanings=f"{RESULT}: the part states a result for the whole problem.",
)
_CONFIRM_WITH_ANSWER = (
    "Does the part of a reasoning below state a result for the whole problem that equals the gold "
    "answer? Answer Yes or No, and nothing else."
)
_CONFIRM_WITHOUT_ANSWER = (
    "Does the part of a reasoning below state a result for the whole problem, and not only an "
    "intermediate value? Answer Yes or No, and nothing else."
)


def forced_answer(after_newline: bool) -> str:
    """Text appended to a cut thinking; `after_newline`: the kept ids already end in a newline."""
    return FORCED_ANSWER.lstrip("\n") if after_newline else FORCED_ANSWER


def format_problem(problem: str, template: str) -> str:
    """User message for a problem.

    `template` is a format string with the one field `{problem}` (recipe key `prompt_template`);
    literal braces are doubled. Raises ValueError if the field is missing, or if there are others.
    """
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    if fields != {"problem"}:
        raise ValueError(
            "prompt_template must contain {problem} and no other field, but has "
            f"{sorted(fields)} in {template!r}; write literal braces twice, as in \\boxed{{{{}}}}"
        )
    return template.format(problem=problem)


def reflection_messages(problem: str, paragraphs: list[str], reply: str = LONG) -> Messages:
    """Chat messages that ask the reflection model for one label per paragraph, in a form of
    REFLECTION_REPLIES, in training and online, where the form's prefill follows the prompt."""
    return _user_message(
        _REFLECTION_INSTRUCTIONS[reply],
        _PROBLEM_HEADING,
        problem,
        _REASONING_HEADING,
        _numbered_parts(paragraphs),
    )


def reflection_labels(is_result: list[bool], reply: str = LONG) -> str:
    r"""Reflection model's whole reply, prefill included: `[1]. Think\n[2]. Result`, one line per
    paragraph; compact `Labels: Think Result`."""
    labels = ["Result" if hit else "Think" for hit in is_result]
    if reply == COMPACT:
        return " ".join([REFLECTION_PREFILLS[COMPACT], *labels])
    return "\n".join(f"[{i}]. {label}" for i, label in enumerate(labels, start=1))


def judge_messages(problem: str, paragraphs: list[str], answer: str | list[str] | None) -> Messages:
    """Chat messages that ask the judge for one label per paragraph, numbered from 1.

    With the gold `answer` (of several each is right) the labels are Reasoning, Right Result and
    Wrong Result; with None Reasoning and Result.
    """
    instruction = _JUDGE_WITHOUT_ANSWER if answer is None else _JUDGE_WITH_ANSWER
    given = _given(answer)
    return _user_message(
        instruction,
        _PROBLEM_HEADING,
        problem,
        *given,
        _REASONING_HEADING,
        _numbered_parts(paragraphs),
    )


def confirmation_messages(problem: str, paragraph: str, answer: str | list[str] | None) -> Messages:
    """Chat messages of the second judgement, Yes or No: does this paragraph state the result?"""
    instruction = _CONFIRM_WITHOUT_ANSWER if answer is None else _CONFIRM_WITH_ANSWER
    given = _given(answer)
    return _user_message(
        instruction, _PROBLEM_HEADING, problem, *given, _PART_HEADING, paragraph.strip()
    )


def _given(answer: str | list[str] | None) -> list[str]:
    """Block with the gold answer, if the judge is told it."""
    if answer is None:
        return []
    return [_GOLD_HEADING, answer if isinstance(answer, str) else " or ".join(answer)]


def _numbered_parts(paragraphs: list[str]) -> str:
    return "\n\n".join(f"[{i}]. {text.strip()}" for i, text in enumerate(paragraphs, start=1))


def _user_message(*blocks: str) -> Messages:
    return [{"role": "user", "content": "\n\n".join(blocks)}]
