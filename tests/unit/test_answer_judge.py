"""The judge that reads which value a paragraph states, against 100 paragraphs labelled by hand.

The paragraphs are of a 0.5B model's responses to problems of GSM8K and SVAMP (both MIT).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generation.answer_judge import AnswerJudge, main, stated_values
from generation.math_verify import VerifierPool
from generation.prompts import REASONING, RESULT, RIGHT_RESULT, WRONG_RESULT

PARAGRAPHS = json.loads((Path(__file__).parents[1] / "data" / "judged_paragraphs.json").read_text())


@pytest.fixture(scope="module")
def judge():
    with VerifierPool(1) as pool:
        yield AnswerJudge(pool)


@pytest.mark.parametrize(
    "paragraph, announced",
    [
        ("24 + 48 = 72. So the answer is 72.", "72"),
        ("So I get 72 again.", "72"),
        ("That gives 72 as well, so it matches.", "72"),
        ("So now the answer is 24, but before I had 72.", "24"),
        ("Here I get 24, but I got 72 twice before. So I'll stay with 72.", "72"),
        ("So I'm confident that the answer is $1,200.50.", "1,200.50"),
        ("Thus the answer should be \\boxed{\\frac{3}{4}}.", "\\frac{3}{4}"),
        ("Therefore, the final answer is **72**", "72"),
        ("She sold 48 / 2 = 24 clips in May.", None),
        ("Let me find the answer.", None),
    ],
)
def test_announced_values(paragraph, announced):
    assert stated_values(paragraph).announced == announced


def test_precision_and_recall_on_paragraphs_labelled_by_hand(judge):
    given = [judge.labels([row["paragraph"]], row["gold"])[0] for row in PARAGRAPHS]
    by_hand = [row["label"] for row in PARAGRAPHS]
    assert (
        len(PARAGRAPHS) == 100
        and by_hand.count(RIGHT_RESULT) == 21
        and by_hand.count(WRONG_RESULT) == 18
    )
    for label, precision, recall in ((RIGHT_RESULT, 0.95, 0.95), (WRONG_RESULT, 0.95, 0.8)):
        hits = sum(a == b == label for a, b in zip(given, by_hand, strict=True))
        assert hits / given.count(label) >= precision
        assert hits / by_hand.count(label) >= recall


def test_an_intermediate_value_that_is_no_conclusion_is_reasoning(judge):
    paragraphs = [
        "She sold 48 / 2 = 24 clips.",
        "So she sold 24 clips.",
        "So the answer is 24.",
        "Total = 48 + 24 = 72",
    ]
    assert judge.labels(paragraphs, "72") == [REASONING, REASONING, WRONG_RESULT, RIGHT_RESULT]
    assert judge.labels(paragraphs, "72", use_answer=False) == [
        REASONING,
        REASONING,
        RESULT,
        REASONING,
    ]


def test_its_files_are_those_of_a_large_judge(tmp_path):
    from tiny import save_model

    from generation.labeling_distill_utils import candidate_rows, labelled_paths

    model = str(save_model(tmp_path / "model"))
    text = (
        "First 48 + 24 is needed.\n\nSo the answer is 70.\n\nSo the answer is "
        "72.\n</think>\n\n\\boxed{72}"
    )
    row = {"id": "p", "problem": "48 + 24?", "answer": "72"}
    row["responses"] = [
        {"text": text, "num_tokens": 9, "finish_reason": "stop", "prompt_thinking": "open"}
    ]
    (tmp_path / "paths.json").write_text(json.dumps([row]))
    flags = [
        "--qaf",
        str(tmp_path / "paths.json"),
        "--model_dir",
        "judge",
        "--output_dir",
        str(tmp_path),
    ]
    paragraphs = ["--paragraph_tokenizer", model, "--paragraph_min_tokens", "1"]
    main([*flags, "--split", "labeling_distill_use_asw", *paragraphs])
    labels = json.loads((tmp_path / "judge" / "paths_labeling_distill_use_asw.json").read_text())
    (path,) = labelled_paths(labels)
    assert path.is_candidate == [False, False, True]
    (candidate,) = candidate_rows([path])
    (tmp_path / "paths.json").write_text(json.dumps([candidate]))
    main([*flags, "--split", "json"])
    (confirmed,) = json.loads((tmp_path / "judge" / "paths_json.json").read_text())
    assert confirmed["responses"][0]["text"] == "Yes"


def test_a_split_that_is_no_judgement_is_refused(tmp_path):
    (tmp_path / "problems.json").write_text('[{"problem": "1 + 1?", "answer": "2"}]')
    with pytest.raises(SystemExit, match="this is a judge"):
        main(
            [
                "--qaf",
                str(tmp_path / "problems.json"),
                "--model_dir",
                "judge",
                "--output_dir",
                str(tmp_path),
            ]
        )
