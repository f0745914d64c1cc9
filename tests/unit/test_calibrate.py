"""The choice of the cut on held-out responses: outcomes worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from generation import calibrate
from generation.calibrate import (
    CutResponse,
    HeldOut,
    Rule,
    check_detector,
    choose,
    main,
    outcome,
    outcomes,
    reflection_reward,
    reliability,
)
from generation.cuts import CutRule

CAP = CutRule(cap_share=0.0)


def held_out(problem, p_result, confirmed, right_from):
    """Four paragraphs of 10 tokens; a cut is right from a paragraph on, and costs 5 tokens more."""
    finished = {cut: CutResponse(cut >= right_from, 10 * (cut + 1) + 5) for cut in range(4)}
    return HeldOut(problem, [10] * 4, p_result, set(confirmed), finished)


RESPONSES = [
    held_out("a", [0.1, 0.9, 0.2, 0.9], [1, 3], 1),  # found where it is
    held_out("b", [0.6, 0.1, 0.9, 0.9], [2, 3], 2),  # at 0.6 something is found too early
]


def test_outcome_of_cuts():
    early = outcome(RESPONSES, [1, 0])
    assert (early.accuracy.value, early.drop, early.safe, early.cut) == (0.5, 0.5, 0.5, 1.0)
    assert early.tokens == (25 + 15) / (45 + 45)
    late = outcome(RESPONSES, [1, 2])
    assert (late.drop, late.safe) == (0.0, 1.0)


def test_the_rule_with_the_fewest_tokens_within_the_limits_is_chosen():
    by_rule = outcomes(RESPONSES, CAP)
    rule = choose(by_rule, margin=0.01, min_safe=0.97)
    assert (by_rule[rule].drop, by_rule[rule].safe) == (0.0, 1.0)
    assert by_rule[rule].tokens == (25 + 35) / 90
    assert rule == Rule(0.9, 0.0)  # of equals the highest threshold
    assert by_rule[choose(by_rule, margin=1.0, min_safe=0.0)].tokens < by_rule[rule].tokens


def test_no_rule_within_the_limits_is_an_error_with_the_best_one():
    hopeless = [held_out("a", [0.9, 0.1, 0.1, 0.1], [3], 3)]
    with pytest.raises(ValueError, match="loses 100.0 points"):
        choose(outcomes(hopeless, CAP), margin=0.01, min_safe=0.97)


def test_cuts_that_take_the_reflection_away_are_not_chosen():
    """Words stand in the last two paragraphs only, so that an early cut has none."""
    rewards = (0.0, 0.0, 0.8, 1.0)
    responses = []
    for r in RESPONSES:
        cuts = {i: replace(c, reflect=rewards[i]) for i, c in r.finished.items()}
        responses.append(replace(r, finished=cuts))
    by_rule = outcomes(responses, CAP)
    early = choose(by_rule, margin=0.01, min_safe=0.97)
    assert by_rule[early].reflect == 0.8 / 2  # cut after paragraphs 1 and 2
    late = choose(by_rule, margin=0.01, min_safe=0.97, min_reflect=0.7)
    assert late.second_half == 0.5 and by_rule[late].reflect == 0.8
    with pytest.raises(ValueError, match="no setting of the cut keeps 99 % of the reflection"):
        choose(by_rule, margin=0.01, min_safe=0.97, min_reflect=0.99)


def test_reflection_reward_of_a_finished_row():
    text = "So 7.\n\nWait, 8.\n</think>\n\n\\boxed{8}"
    response = {"text": text, "num_tokens": 30, "prompt_thinking": "open"}
    row = {"responses": [response], "thinking": [10, 10, 99], "last_kept": 1}
    assert reflection_reward(row, 5.0) == 0.25  # a word in 20 tokens
    assert (reflection_reward(row, 500.0), reflection_reward(row, None)) == (1.0, 1.0)


@pytest.mark.parametrize(
    "p_result, message",
    [
        ([], "no label at all"),
        ([0.01, 0.02, 0.05, 0.0], "never says Result"),
        ([0.99] * 4, "says Result everywhere"),
    ],
)
def test_a_detector_that_tells_nothing_is_an_error(p_result, message):
    with pytest.raises(ValueError, match=message):
        check_detector([held_out("a", p_result, [1], 1)])


def test_reliability_has_mean_and_share_of_each_bin():
    bins = reliability(RESPONSES)
    assert [(round(b["p"], 3), round(b["share"], 3), b["paragraphs"]) for b in bins] == [
        (0.1, 0.0, 2),
        (0.2, 0.0, 1),
        (0.6, 0.0, 1),
        (0.9, 1.0, 4),
    ]


def steps(p_result):
    """Log-probs of the reply `[1]. Think ...` as split labeling writes them."""
    found = []
    for p in p_result:
        alternatives = sorted([(math.log(p), "Result"), (math.log(1 - p), "Think")], reverse=True)
        found += [[[0.0, "."]], alternatives]
    return found


def test_both_commands_from_files_to_the_recipe_key(tmp_path, monkeypatch):
    from tiny import save_model

    from generation.measured import read_cut_file

    model = str(save_model(tmp_path / "model"))
    parts = ["We need 6 x 7.", "So the answer is 42.", "Let me check.", "So I get 42 again."]
    text = "\n\n".join(parts) + "\n</think>\n\n\\boxed{42}"
    answered = {"text": text, "num_tokens": 40, "finish_reason": "stop", "prompt_thinking": "open"}
    path = {"id": "p", "problem": "6 x 7?", "answer": "42", "responses": [answered, answered]}
    labels = [
        {"id": f"p/{k}", "problem": "6 x 7?", "answer": "42", "problem_id": "p",
         "responses": [{"text": "[1].", "num_tokens": 1, "finish_reason": "stop",
                        "logprobs": steps([0.1, 0.9, 0.1, 0.8])}]}
        for k in range(2)
    ]  # fmt: skip
    judged = [
        {"id": f"p/{k}", "problem_id": "p", "confirmed": [1, 3], "num_paragraphs": 4}
        for k in range(2)
    ]
    files = {
        name: tmp_path / f"{name}.json"
        for name in ("paths", "labels", "cuts", "rows", "finished", "cut")
    }
    for name, rows in (("paths", [path]), ("labels", labels), ("cuts", judged)):
        files[name].write_text(json.dumps(rows))
    common = [
        "--labels",
        str(files["labels"]),
        "--judge_cuts",
        str(files["cuts"]),
        "--cut_cap_share",
        "0",
    ]
    paragraphs = ["--paragraph_tokenizer", model, "--paragraph_min_tokens", "1"]
    main(["rows", str(files["paths"]), *common, "--out", str(files["rows"]), *paragraphs])
    rows = json.loads(files["rows"].read_text())
    assert {row["last_kept"] for row in rows} >= {1, 3}
    for row in rows:
        if row.pop("prefix") is not None:
            row["responses"] = [
                {
                    **answered,
                    "text": "So 42.\n</think>\n\n\\boxed{42}",
                    "num_tokens": 10 * row["last_kept"],
                }
            ]
    files["finished"].write_text(json.dumps(rows))
    drawn = []
    monkeypatch.setattr(calibrate, "draw", lambda *args: drawn.append(args[-1]))
    choose = ["choose", str(files["finished"]), *common, "--out", str(files["cut"])]
    files["cut"].write_text('{"mine": 1}\n')
    with pytest.raises(SystemExit, match="is there, and is no earlier output of this command"):
        main(choose)
    assert files["cut"].read_text() == '{"mine": 1}\n'
    files["cut"].unlink()
    for _ in range(2):  # its own file is replaced
        main(choose)
    assert read_cut_file(files["cut"]) == {"cut_threshold": 0.9, "cut_second_half": 0.0}
    chosen = json.loads(files["cut"].read_text())
    assert chosen["cuts"]["reflection model"]["safe"] == 1.0 and chosen["detector"]["auc"] == 1.0
    assert drawn == [tmp_path / "cut.png"] * 2


def test_the_recipe_takes_the_cut_of_the_file(tmp_path):
    from types import SimpleNamespace

    from rea_rl.grpo import take_cut_file

    (tmp_path / "cut.json").write_text('{"cut_threshold": 0.2, "cut_second_half": 0.25}')
    args = SimpleNamespace(cut_file=str(tmp_path / "cut.json"), cut_strong_threshold=0.25)
    args.reflection_model = None
    take_cut_file(args)
    assert (args.cut_threshold, args.cut_second_half, args.cut_strong_threshold) == (0.2, 0.25, 0.2)
    args.cut_file = str(tmp_path / "none.json")
    with pytest.raises(ValueError, match="does not exist"):
        take_cut_file(args)
