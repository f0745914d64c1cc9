"""Every prompt string of the project: the only place where text for a model is put together."""

from __future__ import annotations

import string

THINK_START = "<think>"
THINK_END = "</think>"

# Ends a thinking that was cut. Where the kept ids already end in a newline (`.\n\n` is one token in Qwen's
# tokenizers), the variant without the leading newline follows instead, see `forced_answer`.
FORCED_ANSWER = f"\n{THINK_END}\n\n**Final Answer:**\n\n"

MATH_COT = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."

REFLECTION_PREFILL = "[1]."
_REFLECTION_INSTRUCTION = (
    "The reasoning below is split into numbered parts. "
    "Write one line for each part: Result if it states a result for the problem, Think otherwise."
)
_PROBLEM_HEADING = "# Problem"
_REASONING_HEADING = "# Reasoning"


def forced_answer(after_newline: bool) -> str:
    """Text appended to a cut thinking; `after_newline` says that the kept ids already end in a newline."""
    return FORCED_ANSWER.lstrip("\n") if after_newline else FORCED_ANSWER


def format_problem(problem: str, template: str) -> str:
    """User message for a problem.

    `template` is a format string with the one field `{problem}` (recipe key `prompt_template`); literal braces are
    doubled. Raises ValueError if the field is missing, or if there are others.
    """
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    if fields != {"problem"}:
        raise ValueError(
            f"prompt_template must contain {{problem}} and no other field, but has {sorted(fields)} in {template!r}; "
            "write literal braces twice, as in \\boxed{{}}"
        )
    return template.format(problem=problem)


def reflection_messages(problem: str, paragraphs: list[str]) -> list[dict[str, str]]:
    """Chat messages that ask the reflection model for one label per paragraph.

    Training and online labelling both use them. Online, `REFLECTION_PREFILL` follows the generation prompt.
    """
    parts = "\n\n".join(f"[{i}]. {text.strip()}" for i, text in enumerate(paragraphs, start=1))
    content = f"{_REFLECTION_INSTRUCTION}\n\n{_PROBLEM_HEADING}\n\n{problem}\n\n{_REASONING_HEADING}\n\n{parts}"
    return [{"role": "user", "content": content}]


def reflection_labels(is_result: list[bool]) -> str:
    r"""Reflection model's whole reply, prefill included: `[1]. Think\n[2]. Result`, one line per paragraph."""
    return "\n".join(f"[{i}]. {'Result' if hit else 'Think'}" for i, hit in enumerate(is_result, start=1))
