"""The report of the real model from scripted files: figures worked out by hand."""

from __future__ import annotations

import contextlib
import json

import pytest
from tiny import save_model
from viewer_run import pair

from rea_core.problems import problem_digest
from rea_rl.study.real_report import example_pairs, find_rows, forced_curves, main

PROBLEMS = [
    {"id": "test/0", "problem": "6 x 7?", "answer": "42", "benchmark": "SVAMP"},
    {
        "id": "test/1",
        "problem": "40 + 3?",
        "answer": "43",
        "benchmark": "GSM8K",
        "level": "2 steps",
    },
]
RIGHT_AT_ONCE = (
    "So the answer is {a}.\n\nWait, let me check.\n\nSo I get {a} "
    "again.\n</think>\n\n\\boxed{{{a}}}"
)
CORRECTED = (
    "So the answer is 7.\n\nWait, let me check.\n\nSo the answer is "
    "{a}.\n</think>\n\n\\boxed{{{a}}}"
)
WRONG = "So the answer is 7.\n</think>\n\n\\boxed{{7}}"


def write(path, responses, thinking="open"):
    """A generation file with a verdict for each response: (text, tokens, right) for each
    problem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, verdicts = [], []
    for problem, answers in zip(PROBLEMS, responses, strict=True):
        texts = [
            {
                "text": text.format(a=problem["answer"]),
                "num_tokens": tokens,
                "finish_reason": "stop",
                "prompt_thinking": thinking,
            }
            for text, tokens, _ in answers
        ]
        rows.append({**problem, "responses": texts})
        verdicts += [
            {"id": problem["id"], "sample": k, "correct": right}
            for k, (_, _, right) in enumerate(answers)
        ]
    path.write_text(json.dumps(rows))
    path.with_suffix(".verdicts.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in verdicts)
    )


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    write(folder / "study/base/seed-0/eval/LRM/test_math_cot.json", [
        [(RIGHT_AT_ONCE, 400, True), (WRONG, 200, False)],
        [(CORRECTED, 600, True), (WRONG, 400, False)],
    ])  # fmt: skip
    for seed, tokens in enumerate((100, 300)):
        write(folder / f"study/rea_rl/seed-{seed}/eval/LRM/test_math_cot.json", [
            [(RIGHT_AT_ONCE, tokens, True), (RIGHT_AT_ONCE, tokens, True)],
            [(RIGHT_AT_ONCE, tokens, True), (WRONG, tokens, False)],
        ])  # fmt: skip
    write(
        folder / "generated/instruct/base/test_math_cot.json",
        [[(WRONG, 50, False)] * 2] * 2,
        thinking="unknown",
    )
    return folder


def report(work, tmp_path):
    model = str(save_model(tmp_path / "model"))
    main([str(work), "--model_dir", model, "--out", str(tmp_path / "real")])
    return json.loads((tmp_path / "real" / "real.json").read_text())


def test_rows_and_their_figures(work, tmp_path):
    found = report(work, tmp_path)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["instruct", "lrm", "rea_rl"]
    assert (rows["lrm"]["accuracy"], rows["lrm"]["tokens"], rows["lrm"]["seeds"]) == (0.5, 400.0, 1)
    trained = rows["rea_rl"]
    assert (trained["accuracy"], trained["tokens"], trained["tr"], trained["seeds"]) == (
        0.75,
        200.0,
        50.0,
        2,
    )
    overall = rows["lrm"]["groups"]["all"]
    assert overall["tokens_right"]["value"] == 500.0 and overall["tokens_wrong"]["value"] == 300.0
    assert overall["mistakes"]["value"] == 0.75
    assert overall["corrected"]["value"] == pytest.approx(1 / 3)
    assert overall["rechecks_per_response"]["value"] == 0.5
    assert rows["lrm"]["groups"]["2 steps"]["accuracy"]["value"] == 0.5
    assert found["differences"]["rea_rl - lrm"]["accuracy"]["value"] == 0.25


def test_a_response_over_the_budget_has_no_answer(work, tmp_path):
    budgets = report(work, tmp_path)["budgets"]
    assert [budgets["lrm"][b]["value"] for b in ("256", "512", "1024")] == [0.0, 0.25, 0.5]
    assert [budgets["rea_rl"][b]["value"] for b in ("64", "128", "512")] == [0.0, 0.375, 0.75]


def test_the_page_has_tables_and_pictures(work, tmp_path):
    report(work, tmp_path)
    page = (tmp_path / "real" / "README.md").read_text()
    assert "| REA-RL" in page and "50.0 [" in page and "2 test problems, 2 answers each" in page
    assert (tmp_path / "real" / "tradeoff.png").is_file() and (
        tmp_path / "real" / "budgets.png"
    ).is_file()


def test_a_row_that_was_only_trained_has_a_curve_and_the_detector_a_table(work, tmp_path):
    state = work / "study/grpo/seed-0/trainer_state.json"
    state.parent.mkdir(parents=True)
    steps = [{"step": i, "rollout/num_tokens": 9.0 - i, "step_time": 2.5} for i in (1, 2)]
    state.write_text(json.dumps({"log_history": steps}))
    values = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
    values |= {"tokens": 0.75, "safe": 0.97, "cut": 0.45, "reflect": 0.8}
    cut = {"cut_threshold": 0.45, "cut_second_half": 0.0, "responses": 12, "problems": 4}
    cut |= {"settings_tried": 54, "detector": {"precision": 0.7, "recall": 0.6, "auc": 0.89}}
    (work / "cut.json").write_text(json.dumps(cut | {"cuts": {"reflection model": values}}))
    assert report(work, tmp_path)["seconds"] == {"grpo": 5.0}
    assert (tmp_path / "real" / "training.png").is_file()
    page = (tmp_path / "real" / "README.md").read_text()
    assert "(AUC) is 0.89" in page and "| reflection model | 50.0 [40.0, 60.0] | 75.0" in page


def test_a_row_with_other_problems_is_an_error(work, tmp_path):
    path = work / "study/rea_rl/seed-1/eval/LRM/test_math_cot.json"
    path.write_text(path.read_text().replace("test/1", "test/2"))
    verdicts = path.with_suffix(".verdicts.jsonl")
    verdicts.write_text(verdicts.read_text().replace("test/1", "test/2"))
    with pytest.raises(SystemExit, match="has other problems than the other rows"):
        report(work, tmp_path)


def test_forced_answers_and_examples_of_other_problems_are_refused(work, tmp_path):
    """The ids are those of the test set, and of the training problems."""
    forced = work / "forced/lrm/lrm_math_cot.json"
    for change, error in (
        ("", None),
        (" Or not?", "'test/0' is about another problem than 'test/0'"),
    ):
        write(forced, [[(WRONG, 50, False)]] * 2)
        rows = json.loads(forced.read_text())
        for row in rows:
            row |= {"problem_id": row["id"], "budget": 64, "problem": row["problem"] + change}
        forced.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=error) if error else contextlib.nullcontext():
            assert [*forced_curves(work, PROBLEMS)] == ["lrm"]
    lines = pair("a", 0, 3)
    for digest, error in ((None, None), (problem_digest("1?"), None), ("else", "about another")):
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        text = "".join(json.dumps({**line, "problem_digest": digest}) + "\n" for line in lines)
        (tmp_path / "rollouts/step-0.jsonl").write_text(text)
        with pytest.raises(ValueError, match=error) if error else contextlib.nullcontext():
            example_pairs(tmp_path, {"a": "1?"})


def test_without_the_reasoning_model_there_is_nothing_to_compare_with(tmp_path):
    with pytest.raises(ValueError, match="no evaluation of the reasoning model"):
        find_rows(tmp_path)
