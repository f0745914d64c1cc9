"""Rows that force an answer after so many tokens of thinking."""

from __future__ import annotations

import json

from tiny import save_model

from generation.forced_budgets import main


def test_a_thinking_over_the_budget_is_cut_and_another_passed_on(tmp_path):
    model = str(save_model(tmp_path / "model"))
    response = {
        "text": "abcdef\n</think>\n\n\\boxed{1}",
        "num_tokens": 20,
        "finish_reason": "stop",
        "prompt_thinking": "open",
    }
    row = {"id": "p", "problem": "1?", "answer": "1", "responses": [response, response]}
    (tmp_path / "paths.json").write_text(json.dumps([row]))
    main(
        [
            str(tmp_path / "paths.json"),
            "--out",
            str(tmp_path / "rows.json"),
            "--model_dir",
            model,
            "--budgets",
            "16",
            "4",
        ]
    )
    short, whole = json.loads((tmp_path / "rows.json").read_text())
    assert (short["id"], short["prefix"]) == ("p/0/4", "abcd\n</think>\n\n**Final Answer:**\n\n")
    assert (whole["id"], whole["prefix"], whole["responses"]) == ("p/0/16", None, [response])
