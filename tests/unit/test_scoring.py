"""Scoring and plots: figures and intervals worked out by hand, tables, files, pictures."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_tokenizer, save_model

from generation.counting import Counting, count_rows, within_budgets
from generation.evaluation.plots import draw, read_log, running_mean, series
from generation.evaluation.plots import main as plot
from generation.math_verify_all import append_result, main, read_base_tokens, table
from generation.measured import read_tokens_per_reflection
from generation.scoring import (
    Interval,
    ScoredProblem,
    ScoredResponse,
    aes,
    figures,
    groups,
    mean_interval,
    pass_at_k,
    ratio_interval,
)
from rea_core.problems import problem_digest
from rea_core.row_files import write_json

# Scores are also appended to a log in the working directory.
pytestmark = pytest.mark.usefixtures("elsewhere")


def response(
    correct: bool, tokens: int, think: int = 10, words: int = 1, first_right: bool | None = None
):
    return ScoredResponse(
        correct, tokens, think, words, truncated=tokens >= 100, first_right=first_right
    )


# Two problems of two responses each.
EASY = ScoredProblem("a", 1, [response(True, 20), response(True, 40, words=3)])
HARD = ScoredProblem(
    "b", 2, [response(False, 100, think=90, words=0), response(True, 80, think=70, words=5)]
)


# --- Intervals ------------------------------------------------------------------------------------


def test_responses_of_a_problem_stay_together():
    # Four right responses to one problem, four wrong ones to the other. A resample draws each
    # problem twice with probability 1/4, so 0 and 1 are inside the 95 % interval; eight independent
    # responses would give 0.125 to 0.875.
    assert ratio_interval([0, 4], [4, 4]) == Interval(0.5, 0.0, 1.0)


def test_interval_of_a_binomial_share():
    # 100 problems, 80 right: the resampled share has the mean 0.8 and the deviation sqrt(0.8 * 0.2
    # / 100) = 0.04.
    interval = ratio_interval([1] * 80 + [0] * 20, [1] * 100)
    assert interval.value == 0.8
    assert interval.low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
    assert interval.high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)


def test_interval_of_equal_problems_is_a_point():
    assert ratio_interval([3, 3, 3], [4, 4, 4]) == Interval(0.75, 0.75, 0.75)


def test_interval_of_three_problems_worked_out_by_hand():
    # One of three is right. A resample has 0, 1, 2, 3 right ones with chances 8/27, 12/27, 6/27,
    # 1/27: 2.5 % and 97.5 % of the resamples lie below 0 + and 3/3, since 1/27 = 3.7 % are 3/3 and
    # 29.6 % are 0.
    assert ratio_interval([1, 0, 0], [1, 1, 1]) == Interval(pytest.approx(1 / 3), 0.0, 1.0)
    # One of four: 4/4 has the chance 1/256, 3/4 or more 13/256 = 5.1 %, so the upper end is 3/4.
    assert ratio_interval([1, 0, 0, 0], [1, 1, 1, 1]) == Interval(0.25, 0.0, 0.75)


def test_mean_over_benchmarks_weighs_each_the_same():
    # 1 of 1 and 0 of 3: the mean of 1 and 0, not 1 of 4; neither benchmark varies within itself.
    assert mean_interval([([1], [1]), ([0, 0, 0], [1, 1, 1])]) == Interval(0.5, 0.5, 0.5)
    # Two coins, one per benchmark, each drawn as 0, 1/2, 1 with chances 1/4, 1/2, 1/4: mean 0 or 1
    # with 1/16 each.
    assert mean_interval([([1, 0], [1, 1]), ([1, 0], [1, 1])]) == Interval(0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("samples", "correct", "k", "expected"),
    [(4, 1, 2, 1 / 2), (4, 2, 2, 5 / 6), (8, 1, 8, 1), (8, 0, 4, 0), (4, 3, 1, 3 / 4)],
)
def test_pass_at_k(samples, correct, k, expected):
    assert pass_at_k(samples, correct, k) == pytest.approx(expected)  # 1 - C(n - c, k) / C(n, k)


def test_accuracy_efficiency_score():
    assert aes(0.8, 60, base_accuracy=0.8, base_tokens=100) == pytest.approx(0.4)
    assert aes(0.84, 60, base_accuracy=0.8, base_tokens=100) == pytest.approx(0.4 + 3 * 0.05)
    assert aes(0.76, 60, base_accuracy=0.8, base_tokens=100) == pytest.approx(0.4 - 5 * 0.05)


def test_undefined_figure_is_none():
    assert ratio_interval([10, 20], [0, 0]) == Interval(None, None, None)
    assert ratio_interval([10, 20], [0, 0]).format() == "-"


def test_format():
    assert Interval(0.5, 0.4, 0.7).format(100) == "50.0 ± 15.0"
    assert Interval(5.0, 4.0, None).format(digits=0) == "5"


# --- Figures --------------------------------------------------------------------------------------


def test_figures_by_hand():
    values = {
        key: f.value for key, f in figures([EASY, HARD], base={"a": 60.0, "b": 120.0}).items()
    }
    assert values == {
        "accuracy": 3 / 4,
        "tokens": 240 / 4,
        "think_tokens": 180 / 4,
        "truncated": 1 / 4,
        "answered": 1.0,
        "no_room": 0.0,
        "tokens_per_word": 180 / 9,
        "tokens_correct": 140 / 3,
        "think_tokens_correct": 90 / 3,
        "tokens_wrong": 100.0,
        "think_tokens_wrong": 90.0,
        "pass@2": 1.0,
        "tr": pytest.approx(100 * (30 + 90) / (60 + 120)),
    }


def test_corrected_is_a_wrong_first_result_and_a_right_answer():
    cases = [
        response(right, 1, first_right=first) for right in (True, False) for first in (True, False)
    ]
    values = figures([ScoredProblem("a", None, cases)])
    assert values["corrected"].value == 1 / 4
    assert values["first_right"].value == 2 / 4
    assert "corrected" not in figures([EASY])


def test_groups_by_level_easiest_first():
    assert list(groups([HARD, EASY])) == ["all", "level 1", "level 2"]
    assert groups([HARD, EASY])["level 1"] == [EASY]
    assert list(groups([ScoredProblem("a", None, EASY.responses)])) == ["all"]


def test_responses_are_counted():
    thinking = "17+25=32\nSo the result is 32.\n\nWait, check that: the result is 42."
    responses = [
        {
            "text": f"{thinking}\n</think>\n\n\\boxed{{42}}",
            "num_tokens": 90,
            "finish_reason": "stop",
        },
        {"text": "<think>The result is 42.", "num_tokens": 99, "finish_reason": "length"},
    ]
    row = {"id": "p", "problem": "17+25?", "answer": "42", "level": 3, "responses": responses}
    (counted,) = count_rows(Counting(make_tokenizer(), slips=True), [row])
    digest = problem_digest("17+25?")
    head = {"id": "p", "answer": "42", "level": 3, "problem_digest": digest}
    assert counted.head == head
    assert counted.responses == [
        [
            # One token a byte, the newline before `</think>` included; "Wait, check" is one
            # cluster.
            (
                "42",
                ScoredResponse(False, 90, len(thinking) + 1, 1, truncated=False, first_right=False),
            ),
            (
                None,
                ScoredResponse(
                    False,
                    99,
                    len("The result is 42."),
                    0,
                    truncated=True,
                    answered=False,
                    first_right=True,
                ),
            ),
        ]
    ]
    assert [replace(r, correct=r.answered).corrected for _, r in counted.responses[0]] == [
        True,
        False,
    ]


# --- Files and table ------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "model"))


def write_generations(path: Path, answers: dict[str, list[str]], tokens: int) -> str:
    """A generation file: by problem the boxed answers, all of them with one reflection word;
    gold is always 7."""

    def make(answer: str) -> dict:
        text = f"Wait, the result is {answer}.\n</think>\n\n\\boxed{{{answer}}}"
        return {"text": text, "num_tokens": tokens, "finish_reason": "stop"}

    write_json(
        path,
        [
            {
                "id": key,
                "problem": "3+4?",
                "answer": "7",
                "level": level,
                "responses": [make(a) for a in given],
            }
            for level, (key, given) in enumerate(answers.items(), start=1)
        ],
    )
    return str(path)


def test_budgets_judge_what_is_left():
    text = "Wait.</think>\\boxed{7} and then some"  # a token a byte, one for the marker: 5 + 1 + 9
    response = {"text": text, "num_tokens": len(text) + 1, "finish_reason": "stop"}
    whole, within, cut = within_budgets(response, [None, 99, 15], make_tokenizer())
    assert whole == within == response
    assert cut == {"text": "Wait.</think>\\boxed{7}", "num_tokens": 15, "finish_reason": "length"}


def test_command_at_two_budgets(tmp_path, model, capsys):
    file = write_generations(tmp_path / "a.json", {"a": ["7", "7"], "b": ["7", "8"]}, tokens=200)
    other = write_generations(tmp_path / "b.json", {"a": ["7"]}, tokens=200)
    main([file, other, "--model_dir", model, "--budgets", "300", "30"])
    scores = json.loads((tmp_path / "a.scores.json").read_text())
    assert scores["groups"] == scores["budgets"]["300"]
    assert scores["groups"]["all"]["accuracy"]["value"] == 0.75
    short = {key: figure["value"] for key, figure in scores["budgets"]["30"]["all"].items()}
    assert (short["accuracy"], short["truncated"], short["answered"], short["tokens"]) == (
        0.0,
        1.0,
        0.0,
        30.0,
    )
    verdicts = [
        json.loads(line) for line in (tmp_path / "a.verdicts.jsonl").read_text().splitlines()
    ]
    assert [(v["budget"], v["id"], v["answer"], v["correct"]) for v in verdicts] == [
        *((30, key, None, False) for key in "aabb"),
        *((300, key, answer, answer == "7") for key, answer in zip("aabb", "7778", strict=True)),
    ]
    logged = [
        json.loads(line) for line in (tmp_path / "output" / "verify.json").read_text().splitlines()
    ]
    assert [Path(entry["file"]).name for entry in logged] == ["a.json", "b.json"]
    assert "pass@2" in capsys.readouterr().out


def test_log_takes_lines_from_many_at_once(tmp_path):
    log = tmp_path / "output" / "verify.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append_result(log, {"file": str(i), "problems": []}), range(40)))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(int(entry["file"]) for entry in entries) == list(range(40))


def test_command_scores_files_against_the_base(tmp_path, model, capsys):
    base = write_generations(tmp_path / "base.json", {"a": ["7", "7"], "b": ["7", "8"]}, tokens=200)
    trained = write_generations(
        tmp_path / "trained.json", {"a": ["7", "7"], "b": ["8", "8"]}, tokens=150
    )
    main([base, "--model_dir", model, "--slips", "--reflection_quantile", "0.2"])
    main([trained, "--model_dir", model, "--slips", "--base", str(tmp_path / "base.scores.json")])
    first, second = (
        json.loads((tmp_path / f"{name}.scores.json").read_text()) for name in ("base", "trained")
    )
    assert first["groups"]["all"]["accuracy"]["value"] == 0.75
    assert second["groups"]["all"]["accuracy"]["value"] == 0.5
    none_of_one = {"value": 0.0, "low": 0.0, "high": pytest.approx(0.793, abs=1e-3)}
    assert second["groups"]["level 2"]["accuracy"] == none_of_one
    assert second["groups"]["all"]["tr"]["value"] == 75.0
    assert [r["correct"] for r in first["problems"][1]["responses"]] == [True, False]
    # Every thinking is 'Wait, the result is 7.' and a newline: one word in 23 tokens.
    assert read_tokens_per_reflection(tmp_path / "base.scores.json", False) == pytest.approx(23)
    printed = capsys.readouterr().out
    assert "75.0 ± 0.0" in printed and "TR %" in printed and "level 2" in printed


def test_table_has_a_row_per_file_and_a_table_by_level():
    scores = {
        "groups": {
            "all": {
                "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6},
                "tokens": {"value": 99.6, "low": 99, "high": 100},
            },
            "level 1": {"accuracy": {"value": 1.0, "low": 1.0, "high": 1.0}},
        }
    }
    lines = table({"base": scores, "mine": scores}).splitlines()
    assert [
        line.split()[0]
        for line in lines
        if line.startswith((" ", "base", "mine")) and "50.0" in line
    ] == [
        "base",
        "mine",
    ]
    assert "50.0 ± 10.0" in lines[2] and "100 ± 0" in lines[2]
    assert any("accuracy %" in line and "level 1" in line for line in lines)
    assert not any("corrected %" in line and "level 1" in line for line in lines)


def test_base_scored_on_other_problems_is_refused(tmp_path):
    write_json(tmp_path / "s.json", {"groups": {}, "problems": [{"id": "a", "mean_tokens": 5.0}]})
    assert read_base_tokens(tmp_path / "s.json", {"a": None}) == {"a": 5.0}
    with pytest.raises(
        ValueError, match="s.json: 2 of 2 problems are not in it, the first is row [bc]; score"
    ):
        read_base_tokens(tmp_path / "s.json", {"b": None, "c": None})


def test_mistakes_are_one_line(tmp_path, model):
    with pytest.raises(SystemExit, match=r"none\.json does not exist"):
        main([str(tmp_path / "none.json"), "--model_dir", model])
    write_json(tmp_path / "a.json", [])
    with pytest.raises(SystemExit, match="holds no scores"):
        main([str(tmp_path / "a.json"), "--model_dir", model, "--base", str(tmp_path / "a.json")])


# --- Pictures -------------------------------------------------------------------------------------


HISTORY = [
    {"step": 1, "rollout/accuracy": 0.9, "rollout/num_tokens": 250.0},
    {"step": 2, "rollout/accuracy": 0.8, "rollout/num_tokens": 240.0},
    {"step": 2, "eval_rollout/accuracy": 0.85, "eval_rollout/num_tokens": 245.0},
]


def test_series_separate_training_from_evaluation():
    assert series(HISTORY, "rollout/accuracy") == ([1, 2], [0.9, 0.8])
    assert series(HISTORY, "eval_rollout/accuracy") == ([2], [0.85])


def test_running_mean_at_the_start_is_over_what_there_is():
    assert running_mean([1.0, 3.0, 5.0, 7.0], width=3) == [1.0, 2.0, 3.0, 5.0]


def test_state_without_rollouts_is_refused(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    with pytest.raises(ValueError, match="no entry of its log has 'rollout/accuracy'"):
        read_log(tmp_path / "state.json")


def scores(accuracy: float, tokens: float, levels: bool) -> dict:
    def figure(value: float) -> dict:
        return {"value": value, "low": value * 0.95, "high": value * 1.05}

    group = {"accuracy": figure(accuracy), "tokens": figure(tokens)}
    return {"groups": {"all": group} | ({"level 1": group, "level 2": group} if levels else {})}


@pytest.mark.parametrize(
    ("history", "names", "levels", "shape"),
    [
        (HISTORY, ["base", "REA-RL"], True, (2, 2)),
        (HISTORY, [], False, (1, 2)),
        (None, ["base"], False, (1, 1)),
    ],
)
def test_picture_has_a_panel_for_what_is_given(tmp_path, history, names, levels, shape):
    from matplotlib import image

    path = draw(
        history, {name: scores(0.9, 200.0, levels) for name in names}, tmp_path / "new" / "run.png"
    )
    assert image.imread(path).shape == (shape[0] * 570, shape[1] * 750, 4)


def test_plot_command_counts_names(tmp_path):
    with pytest.raises(SystemExit, match="there are 1 scores and 2 names"):
        plot(["--scores", "a.json", "--names", "a", "b", "--save_to", str(tmp_path / "a.png")])
