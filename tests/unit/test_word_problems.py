"""The word problems of the real model: disjoint files, with levels."""

from __future__ import annotations

import json

import pytest

from generation import word_problems
from generation.word_problems import FILES, fetch, main, stage_files


def problem(i, **more):
    return {"problem": f"Problem {i}?", "answer": str(i), **more}


def files():
    gsm8k = [problem(100 + i, solution="a\nb\n#### 5", source="GSM8K") for i in range(6)]
    return {
        "words_train": [problem(1, source="SVAMP"), problem(2, source="ASDiv", grade=3)],
        "words_validation": [problem(10, source="SVAMP")],
        "svamp_test": [problem(20, source="SVAMP")],
        "asdiv_test": [problem(21, source="ASDiv", grade=1)],
        "gsm8k_train": gsm8k,
        "GSM8K_test": [problem(30, solution="one\ntwo\nthree")],
    }


def test_files_of_the_stages():
    stages = stage_files(files(), num_heldout=2)
    assert {name: len(rows) for name, rows in stages.items()} == {
        "bootstrap": 6, "detector": 8, "train": 2, "heldout": 3, "test": 3,
    }  # fmt: skip
    assert stages["train"][1] == {
        "id": "train/1",
        "problem": "Problem 2?",
        "answer": "2",
        "benchmark": "ASDiv",
        "level": "grade 3",
    }
    assert [row.get("level") for row in stages["test"]] == [None, "grade 1", "3 steps"]
    assert stages["heldout"][1]["level"] == "2 steps"  # the mark of the answer is no step


def test_a_test_problem_among_the_training_ones_is_an_error():
    found = files()
    found["words_train"].append({"problem": "problem  20?", "answer": "20", "source": "SVAMP"})
    with pytest.raises(ValueError, match="bootstrap has 1 problems that another file holds back"):
        stage_files(found, num_heldout=2)


def test_files_from_a_folder(tmp_path):
    for name, rows in files().items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--num_heldout", "2"])
    assert len(json.loads((tmp_path / "out" / "test.json").read_text())) == 3


def test_files_from_the_hub_are_numeric_and_unique(monkeypatch):
    hub = {
        "ChilleD/SVAMP": [
            {"Body": f"There are {i} cats.", "Question": "How many?", "Answer": f"{i}.0"}
            for i in range(410)
        ],
        "EleutherAI/asdiv": [
            {"body": f"He has {i} nets.", "question": "How many?", "answer": f"{i} (nets)"}
            for i in range(410)
        ]
        + [{"body": "Which?", "question": "Say.", "answer": "red"}],
        "openai/gsm8k": [
            {"question": "1 + 1,199?", "answer": "It is <<1+1199=1200>>1200.\n#### 1,200"}
        ],
    }
    monkeypatch.setattr(word_problems, "read_rows", lambda name, split, config=None: hub[name])
    found = fetch()
    assert set(found) == set(FILES)
    assert (
        len(found["svamp_test"]) == 300
        and len(found["words_validation"]) == 200
        and len(found["words_train"]) == 20
    )
    assert all(row["answer"].isdecimal() for row in found["words_train"])
    assert found["GSM8K_test"] == [
        {"problem": "1 + 1,199?", "answer": "1200", "solution": "It is 1200.", "source": "GSM8K"}
    ]
