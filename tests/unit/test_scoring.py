"""Scoring and plots: figures and intervals worked out by hand, tables, files, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_tokenizer, save_model

from generation.math_verify_all import (
    Interval,
    ScoredProblem,
    ScoredResponse,
    figures,
    groups,
    main,
    ratio_interval,
    read_base_tokens,
    score_rows,
    table,
)
from generation.plots import draw, read_log, running_mean, series
from generation.plots import main as plot
from generation.utils import write_json
from rea_rl.utils import read_tokens_per_reflection


def response(correct: bool, tokens: int, think: int = 10, words: int = 1, first_right: bool | None = None):
    return ScoredResponse(correct, tokens, think, words, truncated=tokens >= 100, first_right=first_right)


# Two problems of two responses each.
EASY = ScoredProblem("a", 1, [response(True, 20), response(True, 40, words=3)])
HARD = ScoredProblem("b", 2, [response(False, 100, think=90, words=0), response(True, 80, think=70, words=5)])


# --- Intervals -------------------------------------------------------------------------------------------------------


def test_responses_of_a_problem_stay_together():
    # Four right responses to one problem, four wrong ones to the other. A resample draws each problem twice with
    # probability 1/4, so 0 and 1 are inside the 95 % interval; eight independent responses would give 0.125 to 0.875.
    assert ratio_interval([0, 4], [4, 4]) == Interval(0.5, 0.0, 1.0)


def test_interval_of_a_binomial_share():
    # 100 problems, 80 right: the resampled share has the mean 0.8 and the deviation sqrt(0.8 * 0.2 / 100) = 0.04.
    interval = ratio_interval([1] * 80 + [0] * 20, [1] * 100)
    assert interval.value == 0.8
    assert interval.low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
    assert interval.high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)


def test_interval_of_equal_problems_is_a_point():
    assert ratio_interval([3, 3, 3], [4, 4, 4]) == Interval(0.75, 0.75, 0.75)


def test_undefined_figure_is_none():
    assert ratio_interval([10, 20], [0, 0]) == Interval(None, None, None)
    assert ratio_interval([10, 20], [0, 0]).format() == "-"


def test_format():
    assert Interval(0.5, 0.4, 0.7).format(100) == "50.0 ± 15.0"
    assert Interval(5.0, 4.0, None).format(digits=0) == "5"


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_figures_by_hand():
    values = {key: f.value for key, f in figures([EASY, HARD], base={"a": 60.0, "b": 120.0}).items()}
    assert values == {
        "accuracy": 3 / 4,
        "tokens": 240 / 4,
        "think_tokens": 180 / 4,
        "truncated": 1 / 4,
        "tokens_per_word": 180 / 9,
        "tr": pytest.approx(100 * (30 + 90) / (60 + 120)),
    }


def test_corrected_is_a_wrong_first_result_and_a_right_answer():
    cases = [response(right, 1, first_right=first) for right in (True, False) for first in (True, False)]
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
        {"text": f"{thinking}\n</think>\n\n\\boxed{{42}}", "num_tokens": 90, "finish_reason": "stop"},
        {"text": "<think>The result is 42.", "num_tokens": 99, "finish_reason": "length"},
    ]
    row = {"id": "p", "problem": "17+25?", "answer": "42", "level": 3, "responses": responses}
    (problem,) = score_rows([row], [True, False], make_tokenizer(), slips=True)
    assert problem == ScoredProblem(
        "p",
        3,
        [
            # One token a byte, the newline before `</think>` included; "Wait, check" is one cluster.
            ScoredResponse(True, 90, len(thinking) + 1, 1, truncated=False, first_right=False),
            ScoredResponse(False, 99, len("The result is 42."), 0, truncated=True, first_right=True),
        ],
    )
    assert [r.corrected for r in problem.responses] == [True, False]


# --- Files and table -------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "model"))


def write_generations(path: Path, answers: dict[str, list[str]], tokens: int) -> str:
    """A generation file: by problem the boxed answers, all of them with one reflection word; gold is always 7."""

    def make(answer: str) -> dict:
        text = f"Wait, the result is {answer}.\n</think>\n\n\\boxed{{{answer}}}"
        return {"text": text, "num_tokens": tokens, "finish_reason": "stop"}

    write_json(
        path,
        [
            {"id": key, "problem": "3+4?", "answer": "7", "level": level, "responses": [make(a) for a in given]}
            for level, (key, given) in enumerate(answers.items(), start=1)
        ],
    )
    return str(path)


def test_command_scores_files_against_the_base(tmp_path, model, capsys):
    base = write_generations(tmp_path / "base.json", {"a": ["7", "7"], "b": ["7", "8"]}, tokens=200)
    trained = write_generations(tmp_path / "trained.json", {"a": ["7", "7"], "b": ["8", "8"]}, tokens=150)
    main([base, "--model_dir", model, "--slips", "--reflection_quantile", "0.2"])
    main([trained, "--model_dir", model, "--slips", "--base", str(tmp_path / "base.scores.json")])
    first, second = (json.loads((tmp_path / f"{name}.scores.json").read_text()) for name in ("base", "trained"))
    assert first["groups"]["all"]["accuracy"]["value"] == 0.75
    assert second["groups"]["all"]["accuracy"]["value"] == 0.5
    assert second["groups"]["level 2"]["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
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
    assert [line.split()[0] for line in lines if line.startswith((" ", "base", "mine")) and "50.0" in line] == [
        "base",
        "mine",
    ]
    assert "50.0 ± 10.0" in lines[2] and "100 ± 0" in lines[2]
    assert any("accuracy %" in line and "level 1" in line for line in lines)
    assert not any("corrected %" in line and "level 1" in line for line in lines)


def test_base_scored_on_other_problems_is_refused(tmp_path):
    write_json(tmp_path / "s.json", {"groups": {}, "problems": [{"id": "a", "mean_tokens": 5.0}]})
    assert read_base_tokens(tmp_path / "s.json", {"a"}) == {"a": 5.0}
    with pytest.raises(ValueError, match="1 of its 1 are not in this file, and 2 of this file's 2 are not in it"):
        read_base_tokens(tmp_path / "s.json", {"b", "c"})


def test_mistakes_are_one_line(tmp_path, model):
    with pytest.raises(SystemExit, match=r"none\.json does not exist"):
        main([str(tmp_path / "none.json"), "--model_dir", model])
    write_json(tmp_path / "a.json", [])
    with pytest.raises(SystemExit, match="holds no scores"):
        main([str(tmp_path / "a.json"), "--model_dir", model, "--base", str(tmp_path / "a.json")])


# --- Pictures --------------------------------------------------------------------------------------------------------


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
    ("history", "names", "levels", "rows"),
    [(HISTORY, ["base", "REA-RL"], True, 2), (HISTORY, [], False, 1), (None, ["base"], False, 1)],
)
def test_picture_has_a_panel_for_what_is_given(tmp_path, history, names, levels, rows):
    from matplotlib import image

    path = draw(history, {name: scores(0.9, 200.0, levels) for name in names}, tmp_path / "new" / "run.png")
    assert image.imread(path).shape == (rows * 570, 1500, 4)


def test_plot_command_counts_names(tmp_path):
    with pytest.raises(SystemExit, match="there are 1 scores and 2 names"):
        plot(["--scores", "a.json", "--names", "a", "b", "--save_to", str(tmp_path / "a.png")])
