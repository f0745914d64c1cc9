"""Benchmarks: the common format, what is collected, and the table and picture of all scored
models."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from generation.evaluation.benchmarks import (
    BENCHMARKS,
    SOURCES,
    check,
    collect,
    common_format,
    fetch,
    golds_digest,
)
from generation.evaluation.benchmarks import main as eval_data
from generation.evaluation.plots import pareto_front
from generation.evaluation.table import (
    average,
    efficiency,
    main,
    read_models,
    relative_tokens,
    table,
)
from generation.scoring import Interval
from rea_core.row_files import write_json

SAMPLE = Path(__file__).parents[2] / "dataset" / "eval_sample"


# --- Data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "GSM8K",
            {"question": "q", "answer": "so 3\n#### 1,000"},
            {"answer": "1,000", "solution": "so 3"},
        ),
        (
            "math500",
            {"problem": "q", "answer": "1", "solution": "s", "level": 2},
            {"answer": "1", "solution": "s"},
        ),
        ("amc23", {"question": "q", "answer": 27.0}, {"answer": "27.0"}),
        (
            "olympiadbench",
            {"question": "q", "final_answer": ["$1,-1$"], "solution": ["a", "b"]},
            {"answer": "1,-1", "solution": "a\nb"},
        ),
    ],
)
def test_common_format(name, row, expected):
    assert common_format(row, SOURCES[name]) == {"problem": "q", **expected}


def test_counts_are_checked_and_defects_are_explained(caplog):
    rows = [{"problem": "q", "answer": str(i)} for i in range(385)]
    with caplog.at_level(logging.INFO):
        check("gaokao2023en", rows)
    assert (
        "byte for byte" in caplog.text
        and golds_digest(rows) in caplog.text
        and "167 and 192" in caplog.text
    )
    with pytest.raises(ValueError, match="has 384 problems, but must have 385"):
        check("gaokao2023en", rows[1:])


def test_fetch_checks_what_is_there_already(tmp_path):
    write_json(tmp_path / "amc23_test.json", [{"problem": "q", "answer": "1"}])
    with pytest.raises(ValueError, match="amc23: .* has 1 problems, but must have 40"):
        fetch(["amc23"], tmp_path)


def test_sample_has_all_six_formats():
    assert {path.name for path in SAMPLE.glob("*.json")} == {
        SOURCES[name].file(name) for name in BENCHMARKS
    }
    collected = collect(SAMPLE, {}, None, None)
    assert {samples: {row["benchmark"] for row in rows} for samples, rows in collected.items()} == {
        8: {"aime2024", "amc23"},
        1: {"GSM8K", "math500", "gaokao2023en", "olympiadbench"},
    }
    ids = [row["id"] for rows in collected.values() for row in rows]
    assert len(set(ids)) == len(ids) == 11
    assert [row["answer"] for row in collected[1] if row["benchmark"] == "gaokao2023en"] == [
        "\\{x|-2\\leqx<1\\}",
        "",
    ]


def test_collect_command_overrides_samples_and_adds_a_benchmark(tmp_path, caplog):
    write_json(
        tmp_path / "amc23_test.json",
        [{"problem": "q", "answer": "1"}, {"problem": "r", "answer": "2"}],
    )
    write_json(tmp_path / "own.json", [{"problem": "o", "answer": "3"}])
    eval_data(
        [
            "collect",
            str(tmp_path),
            "--out",
            str(tmp_path / "out"),
            "--extra",
            f"own={tmp_path / 'own.json'}",
        ]
        + ["--num_samples", "2", "--limit", "1"]
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x2.json"]
    assert [row["id"] for row in json.loads((tmp_path / "out" / "x2.json").read_text())] == [
        "amc23/0",
        "own/0",
    ]
    with pytest.raises(SystemExit, match="has no benchmark"):
        eval_data(["collect", str(tmp_path / "none"), "--out", str(tmp_path / "out")])


# --- Table and picture ----------------------------------------------------------------------------


def scored(benchmark: str, correct: list[list[bool]], tokens: int) -> list[dict]:
    """Problems of a benchmark, a list of verdicts each; every response has so many tokens."""
    counts = {"num_tokens": tokens, "truncated": False, "answered": True, "no_room": False}
    return [
        {
            "id": f"{benchmark}/{i}",
            "benchmark": benchmark,
            "mean_tokens": float(tokens),
            "responses": [{"correct": verdict, **counts} for verdict in verdicts],
        }
        for i, verdicts in enumerate(correct)
    ]


BASE = {
    "GSM8K": scored("GSM8K", [[True]] * 3 + [[False]], 100),
    "amc23": scored("amc23", [[True, False]], 300),
}
SHORT = {"GSM8K": scored("GSM8K", [[True]] * 4, 50), "amc23": scored("amc23", [[True, False]], 270)}


def test_averages_by_hand():
    assert average(BASE, "correct").value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert average(BASE, "num_tokens") == Interval(200.0, 200.0, 200.0)
    assert relative_tokens(SHORT, BASE) == Interval(70.0, 70.0, 70.0)  # 50 % and 90 %
    # Accuracy 0.75 after 0.625, tokens 160 after 200: 0.2 saved, and 3 times a fifth.
    assert efficiency(SHORT, BASE) == pytest.approx(0.2 + 3 * 0.2)


def test_other_problems_cannot_be_compared():
    assert relative_tokens(SHORT, {"GSM8K": BASE["GSM8K"]}) is None
    assert efficiency(SHORT, {"GSM8K": BASE["GSM8K"]}) is None


def test_table_has_benchmarks_as_columns():
    accuracy, tokens = table({"7B-0": BASE, "mine-200": SHORT}, "7B-0").split("\n\n")
    header, _, base, mine = accuracy.splitlines()
    assert header.split()[:4] == ["accuracy", "%", "GSM8K", "amc23"] and "average" in header
    assert "62.5 ± " in base and base.split()[-5:-3] == ["0.0", "0.00"]
    assert (
        mine.split()[1:4] == ["100.0", "[51.0,", "100.0]"]
        and "70.0 ± 0.0" in mine
        and "0.80" in mine
    )
    assert "160 ± 0" in tokens.splitlines()[3]


def test_scores_that_are_malformed_are_one_line(tmp_path):
    response = {"correct": True, "num_tokens": 5, "truncated": False}
    response |= {"answered": True, "no_room": False}
    problem = {"id": "p", "benchmark": None, "mean_tokens": 5.0, "responses": [response]}
    file = tmp_path / "m" / "a.scores.json"
    file.parent.mkdir()
    for changes, message in (
        ({"problems": []}, "none at all"),
        ({"problems": [problem | {"responses": []}]}, "a problem without responses"),
        ({"problems": [problem | {"responses": ["x"]}]}, "row 0 has the response 'x'"),
        ({"problems": [problem | {"responses": [{}]}]}, "row 0 has no 'num_tokens'"),
        ({"problems": [problem | {"responses": [response | {"correct": None}]}]}, "the 'correct'"),
        ({"problems": [problem | {"benchmark": 5}]}, "the 'benchmark' 5"),
        ({"problems": [problem, problem]}, "has the problem 'p', which would count twice"),
        ({"made_by": "x"}, "made_by is x"),
        ({"made_by": {"sampling": None}}, "made_by is"),
    ):
        write_json(file, {"groups": {}, "problems": [problem]} | changes)
        with pytest.raises(SystemExit, match=f"error: .*a.scores.json.*{message}"):
            main([str(tmp_path), "--save_to", str(tmp_path / "x.png")])


def test_command_reads_all_models(tmp_path, capsys):
    for name, benchmarks in (("7B-0", BASE), ("mine-200", SHORT)):
        for samples, benchmark in enumerate(benchmarks):
            path = tmp_path / name / "model" / f"x{samples}_math_cot.scores.json"
            write_json(path, {"groups": {}, "problems": benchmarks[benchmark]})
    assert read_models(tmp_path) == {"7B-0": BASE, "mine-200": SHORT}
    main([str(tmp_path), "--base", "7B-0", "--save_to", str(tmp_path / "tradeoff.png")])
    assert "mine-200" in capsys.readouterr().out
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="run scripts/math_eval.sh first"):
        main([str(tmp_path / "none"), "--save_to", "x.png"])


def test_pareto_front():
    points = [(100.0, 80.0), (50.0, 70.0), (60.0, 65.0), (120.0, 80.0), (50.0, 60.0)]
    assert pareto_front(points) == [(50.0, 70.0), (100.0, 80.0)]
