"""Where the answer of a completion is found, and where there is none."""

from __future__ import annotations

import pytest

from generation.math_verify import extract_answer

CASES = [
    (r"So \boxed{5}.", "5"),
    (r"\boxed{1} and then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{ 18 }", "18"),
    (r"\boxed {7}", "7"),
    (r"\fbox{7}", "7"),
    (r"\boxed{\boxed{18}}", "18"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"Therefore the answer is \boxed{18}}}}.", "18"),
    (r"\boxed{3}. Once more: \boxed{12", "3"),
    (r"\boxed{12", None),
    (r"\boxed{\text{Evelyn}", None),
    (r"\boxed{}", None),
    (r"\boxed", None),
    ("The answer is 5.", None),
    ("", None),
    (r"<think>It is \boxed{1}.</think>So \boxed{2}.", "2"),
    (r"It is \boxed{1}.</think>I cannot say.", None),
    (r"<think>It is \boxed{1}, or", None),
    (r"First \boxed{1}</think> then </think> \boxed{2}", "2"),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_last_complete_box_after_the_thinking(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_markers_only_where_asked_for() -> None:
    text = "5 + 13 is 18.\n#### 18\nDone."
    assert extract_answer(text) is None
    assert extract_answer(text, markers=("####",)) == "18"
    assert extract_answer("The answer is: 7.", markers=("The answer is",)) == "7"
    assert extract_answer(r"\boxed{1} #### 2", markers=("####",)) == "1"
    assert extract_answer("#### ", markers=("####",)) is None
