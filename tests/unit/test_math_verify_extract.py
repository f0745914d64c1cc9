"""Where the answer of a completion is found, and where there is none."""

from __future__ import annotations

import time

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
    (r"It is \boxed{9}. (The answer had to be within \boxed{}.)", "9"),
    (r"\boxed{\boxed{3} or \boxed{}}", "3"),
    (r"\\boxed{5}", "5"),
    (r"\boxed{\{1\}} and a brace \}", r"\{1\}"),
    # Listed boxes are one answer; a box that follows on a sentence is another one.
    (r"$\boxed{3}$ and $\boxed{5}$", "3, 5"),
    (r"$x=\boxed{3}$, $y = \boxed{5}$", "3, 5"),
    (r"\boxed{3}\text{ or }\boxed{5}", "3, 5"),
    (r"\boxed{5}, \boxed{5}", "5"),
    (r"\boxed{3}. So \boxed{5}", "5"),
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


THINKING = [
    # completion, answer where the prompt opened a thinking, where it closed it, and where that is
    # not known
    (r"It is \boxed{12}. Wait, let me check", None, "12", "12"),
    (r"It is \boxed{1}.</think>So \boxed{2}.", "2", "2", "2"),
    (r"It is \boxed{1}.</think>I cannot say.", None, "1", None),
    (r"No.</think>So \boxed{2}.</think>", "2", "2", None),
    (r"<think>It is \boxed{1}, or", None, "1", None),
    (r"<think>It is \boxed{1}</think> \boxed{2", None, "1", None),
    # A thinking that began again.
    (r"1</think>So \boxed{2}.<think>Or \boxed{3}, or", "2", "3", "2"),
    (r"1</think>So <think>\boxed{2}, or \boxed{3}", None, "2, 3", None),
    (r"1</think>So<think>2</think> \boxed{3} <think>\boxed{4}", "3", "4", "3"),
    (r"1</think>So<think>2</think> \boxed{3}", "3", "3", "3"),
    (r"\boxed{7}", None, "7", "7"),
    ("#### 7", None, "7", "7"),
    ("", None, None, None),
]


@pytest.mark.parametrize(("text", *"open closed unknown".split()), THINKING)
def test_what_the_prompt_did_says_where_an_answer_can_stand(
    text: str, open: str | None, closed: str | None, unknown: str | None
) -> None:
    expected = {"open": open, "closed": closed, "unknown": unknown}
    assert {
        thinking: extract_answer(text, ("####",), thinking=thinking) for thinking in expected
    } == expected


def test_an_unknown_state_of_the_thinking_is_refused() -> None:
    with pytest.raises(
        ValueError, match="thinking='opened' is unknown; use one of open, closed, unknown"
    ):
        extract_answer(r"\boxed{1}", thinking="opened")


@pytest.mark.parametrize(
    "piece",
    [
        r"So it is \boxed{12. ",
        r"\boxed{",
        r"\boxed{3}, ",
        r"\boxed{}",
        r"\boxed" + 99 * " ",
        "{",
        "}",
        "\\",
        "</think>",
    ],
)
def test_a_megabyte_is_read_in_one_pass(piece: str) -> None:
    start = time.process_time()
    extract_answer(piece * (1_000_000 // len(piece)), ("####",))
    extract_answer(r"\boxed{ " * 100_000 + "}" * 100_000)
    assert time.process_time() - start < 5  # a scan for each box takes minutes


def test_markers_only_where_asked_for() -> None:
    text = "5 + 13 is 18.\n#### 18\nDone."
    assert extract_answer(text) is None
    assert extract_answer(text, markers=("####",)) == "18"
    assert extract_answer("The answer is: 7.", markers=("The answer is",)) == "7"
    assert extract_answer(r"\boxed{1} #### 2", markers=("####",)) == "1"
    assert extract_answer("#### ", markers=("####",)) is None
