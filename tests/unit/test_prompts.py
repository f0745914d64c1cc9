"""Prompt strings: what the models are asked, character by character."""

from __future__ import annotations

import pytest

from generation import prompts


def test_forced_answer_variants():
    assert prompts.forced_answer(after_newline=False) == "\n</think>\n\n**Final Answer:**\n\n"
    assert prompts.forced_answer(after_newline=True) == "</think>\n\n**Final Answer:**\n\n"


def test_format_problem_keeps_braces_of_the_problem():
    assert prompts.format_problem(r"Simplify \frac{1}{2}.", "{problem}") == r"Simplify \frac{1}{2}."
    assert prompts.format_problem("1+1?", prompts.MATH_COT).endswith(
        r"put your final answer within \boxed{}."
    )


@pytest.mark.parametrize(
    "template", [r"{problem} \boxed{}", "no field", "{question}", "{problem} {level}"]
)
def test_format_problem_refuses_other_fields(template):
    with pytest.raises(ValueError, match="prompt_template must contain"):
        prompts.format_problem("1+1?", template)


def test_reflection_messages_number_the_paragraphs():
    (message,) = prompts.reflection_messages("1+1?", ["\nFirst.", "Second.\n\nStill second."])
    assert message["role"] == "user"
    assert message["content"].endswith(
        "1+1?\n\n# Reasoning\n\n[1]. First.\n\n[2]. Second.\n\nStill second."
    )
    # the miniature's context is short
    assert len(message["content"].split("# Problem")[0].split()) <= 40


def test_reflection_labels_continue_the_prefill():
    labels = prompts.reflection_labels([False, True, False])
    assert labels == "[1]. Think\n[2]. Result\n[3]. Think"
    assert labels.startswith(prompts.REFLECTION_PREFILL)
    compact = prompts.reflection_labels([False, True, False], prompts.COMPACT)
    assert compact == "Labels: Think Result Think"
    assert compact.startswith(prompts.REFLECTION_PREFILLS[prompts.COMPACT])
