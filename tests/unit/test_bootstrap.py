"""Training rows that make a reasoning model: right samples, and traces composed of attempts."""

from __future__ import annotations

import json

import pytest

from generation.bootstrap import (
    Attempt,
    Composer,
    TraceSettings,
    compose_all,
    loops,
    main,
    plain_solution,
    read_attempts,
    trace_counts,
)

RIGHT = [Attempt(f"First way {i}: 40 + 2 makes 42.", "42", True) for i in range(4)]
WRONG = [Attempt(f"Other way {i}: 40 - 2 makes 38.", str(38 - i), False) for i in range(4)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("6 x 7 = 42.\n\nSo the answer is \\boxed{42}.", "6 x 7 = 42."),
        ("6 x 7 = 42.\n\nThus, she has \\boxed{42} cats.", "6 x 7 = 42.\n\nThus, she has 42 cats."),
        ("6 x 7 = 42.\n\nThe total is:\n\\[ \\boxed{42} \\]", "6 x 7 = 42.\n\nThe total is 42."),
        ("It is \\(\\boxed{42}\\).\n\nLet me know if you have questions!", "It is 42."),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ],
)
def test_a_solution_is_read_without_its_box(text, expected):
    assert plain_solution(text) == expected


def test_a_response_that_repeats_a_line_is_not_used():
    assert loops("The total is 12 now.\n" * 3)
    assert not loops("The total is 12 now.\nThe total is 13 now.\n")


def response(text, finish="stop", tokens=50):
    return {"text": text, "num_tokens": tokens, "finish_reason": finish}


def test_only_usable_responses_become_attempts():
    texts = [
        "a \\boxed{1}",
        "b \\boxed{2}",
        "cut off \\boxed{1}",
        "```python``` \\boxed{1}",
        "no box",
    ]
    responses = [response(text) for text in [*texts, "long \\boxed{1}", "a \\boxed{1}"]]
    responses[2]["finish_reason"] = "length"
    responses[5]["num_tokens"] = 400
    ((_, attempts),) = read_attempts(
        [{"responses": responses}], [True, False, True, True, False, True, True], 40, 320
    )
    assert attempts == [Attempt("a 1", "1", True), Attempt("b 2", "2", False)]


def test_a_trace_tries_until_two_attempts_agree_and_ends_right():
    composer = Composer(TraceSettings(extra_weights=[1]))
    trace = composer.compose([*RIGHT, *WRONG], first_right=False)
    thinking, answer = trace.text.split("\n</think>\n\n")
    assert answer == "**Final Answer:**\n\n\\boxed{42}"
    assert not trace.first_right and trace.num_attempts >= 3
    assert thinking.count("First way") == 2  # the second right attempt is the last
    assert thinking.index("Other way") < thinking.index("First way")


def test_two_wrong_attempts_that_agree_give_no_trace():
    same = [Attempt(f"way {i}", "38", False) for i in range(5)]
    assert (
        Composer(TraceSettings(max_attempts=3)).compose([*same, RIGHT[0]], first_right=False)
        is None
    )


def test_further_checks_with_a_wrong_value_keep_the_old_one():
    settings = TraceSettings(extra_weights=[0, 0, 1], wrong_extra=1.0)
    trace = Composer(settings).compose([*RIGHT, *WRONG], first_right=True)
    assert trace.num_extra == 2
    assert trace.text.count("Other way") >= 2 and "42" in trace.text.split("Other way")[-1]


def test_shares_of_corrected_and_unsettled_traces():
    problems = [({"problem": str(i)}, [*RIGHT, *WRONG]) for i in range(40)]
    traces = compose_all(problems, TraceSettings(corrected_share=0.25, unsettled_share=0.0))
    counts = trace_counts(traces)
    assert counts["no two attempts agree"] == 0
    assert 0.2 <= counts["first attempt wrong"] / counts["traces"] <= 0.3
    assert counts["problems"] == 40


@pytest.mark.parametrize(
    "key, value", [("max_attempts", 1), ("extra_weights", [0.0]), ("wrong_extra", 1.5)]
)
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        TraceSettings(**{key: value})


def samples_file(folder, right=True):
    row = {"id": "0", "problem": "6 x 7?", "answer": "42", "level": None}
    good = [response(f"Way {i}: 6 times 7.\n\nSo the answer is \\boxed{{42}}.") for i in range(4)]
    bad = [
        response(f"Way {i}: 6 plus 7.\n\nSo the answer is \\boxed{{{13 + i}}}.") for i in range(4)
    ]
    path = folder / "samples.json"
    path.write_text(json.dumps([{**row, "responses": good + bad if right else bad}]))
    return path


def test_both_commands_write_rows_and_a_card(tmp_path):
    path = samples_file(tmp_path)
    main(["solver", str(path), "--out", str(tmp_path / "solver.json")])
    rows = json.loads((tmp_path / "solver.json").read_text())
    assert (
        len(rows) == 4
        and rows[0]["completion"] == "Way 0: 6 times 7.\n\nSo the answer is \\boxed{42}."
    )
    main(["traces", str(path), "--out", str(tmp_path / "traces.json")])
    assert all(
        r["completion"].endswith("\\boxed{42}")
        for r in json.loads((tmp_path / "traces.json").read_text())
    )
    assert "first attempt wrong" in (tmp_path / "traces.md").read_text()


def test_samples_without_a_right_one_are_an_error(tmp_path, capsys):
    path = samples_file(tmp_path, right=False)
    with pytest.raises(SystemExit) as error:
        main(["traces", str(path), "--out", str(tmp_path / "traces.json")])
    assert "too few responses are right" in str(error.value)
