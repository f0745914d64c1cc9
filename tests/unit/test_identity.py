"""Rows that belong together are found by what they are about. Another order is followed; another
problem, response or model is refused with the file and the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stage_files import make_stages, response

from generation import (
    calibrate,
    clean_dataset,
    labeling_distill_utils,
    labeling_to_prefix,
    math_verify_all,
    sft_data,
)
from generation.arguments import GenerateArguments
from generation.evaluation import benchmarks, plots, strategies, table
from generation.generate import generate
from generation.measured import read_cut_file, read_tokens_per_reflection
from generation.provenance import made_by, weights_digest
from rea_core.problems import problem_digest
from rea_core.row_files import write_json

ROOT = Path(__file__).parents[2]
LRM = str(ROOT / "model/Miniature-LRM")
PROBLEMS = ["1+6?", "2+5?", "3+4?"]


def generated(file: Path, problems: list[str], answers: list[str], **columns: object) -> Path:
    rows = [
        {"id": str(i), "problem": p, "answer": "7", "responses": [response(a)], **columns}
        for i, (p, a) in enumerate(zip(problems, answers, strict=True))
    ]
    write_json(file, rows)
    return file


def scored(file: Path, *flags: str) -> Path:
    log = ["--results", str(file.with_suffix(".log")), "--num_workers", "1"]
    math_verify_all.main([str(file), "--model_dir", LRM, *log, *flags])
    return file.with_suffix(".scores.json")


def edit(file: Path, change: object) -> None:
    rows = json.loads(file.read_text())
    for row in rows if isinstance(rows, list) else rows["problems"]:
        change(row)
    write_json(file, rows)


# --- Problems -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problems", "kept"),
    [
        (PROBLEMS, ["1+6?", "3+4?"]),
        (PROBLEMS[::-1], ["3+4?", "1+6?"]),
        (["2+5?", " 1+6?", "3+4?"], [" 1+6?", "3+4?"]),
        (["1+6?", "2+5?", "3+4 ?"], "1 of 3 problems are not in it, the first is row 2, which"),
        (["1+6?", "1+6?", "3+4?"], "1 of 3 problems are not in it, the first is row 1, which"),
        ([*PROBLEMS, "9-2?"], "1 of 4 problems are not in it, the first is row 3; "),
    ],
)
def test_verdicts_are_matched_by_the_problem(tmp_path, problems, kept):
    scores = scored(generated(tmp_path / "a.json", PROBLEMS, ["7", "0", "7"]))
    write_json(tmp_path / "d.json", [{"problem": p, "answer": "7"} for p in problems])
    flags = ["--dataset", str(tmp_path / "d.json"), "--verdicts", str(scores)]
    flags += ["--out", str(tmp_path / "clean/c.json")]
    if isinstance(kept, list):
        clean_dataset.main(flags)
        rows = json.loads((tmp_path / "clean/c.json").read_text())
        assert [row["problem"] for row in rows] == kept
    else:
        with pytest.raises(SystemExit, match=f"error: .*a.scores.json: {kept}"):
            clean_dataset.main(flags)


def test_verdicts_of_an_earlier_version_are_matched_by_their_generation_file(tmp_path):
    scores = scored(generated(tmp_path / "a.json", PROBLEMS, ["7", "0", "7"]))
    edit(scores, lambda problem: problem.pop("problem_digest"))
    write_json(tmp_path / "d.json", [{"problem": p, "answer": "7"} for p in PROBLEMS[::-1]])
    flags = ["--dataset", str(tmp_path / "d.json"), "--verdicts", str(scores)]
    flags += ["--out", str(tmp_path / "c.json")]
    clean_dataset.main(flags)
    assert [r["problem"] for r in json.loads((tmp_path / "c.json").read_text())] == ["3+4?", "1+6?"]
    (tmp_path / "a.json").unlink()
    with pytest.raises(
        SystemExit, match="a.scores.json: an earlier version .*numbers alone; score"
    ):
        clean_dataset.main(flags)


def test_the_base_s_tokens_are_those_of_the_same_problem(tmp_path):
    base = generated(tmp_path / "base.json", PROBLEMS, ["7"] * 3)
    edit(base, lambda row: row["responses"][0].update(num_tokens=10 * (1 + int(row["id"]))))
    scored(base)
    same = scored(generated(tmp_path / "s.json", PROBLEMS[:0:-1] + [" 1+6?"], ["7"] * 3), "--base",
                  str(tmp_path / "base.scores.json"))  # fmt: skip
    tokens = math_verify_all.read_base_tokens(
        tmp_path / "base.scores.json",
        {p["id"]: p["problem_digest"] for p in json.loads(same.read_text())["problems"]},
    )
    assert tokens == {"0": 30, "1": 20, "2": 10}
    other = generated(tmp_path / "other.json", ["9-2?", "8-1?", "1+6?"], ["7"] * 3)
    with pytest.raises(SystemExit, match="base.scores.json: 2 of 3 problems .*the first is row 0"):
        scored(other, "--base", str(tmp_path / "base.scores.json"))
    fewer = generated(tmp_path / "fewer.json", PROBLEMS[:2], ["7"] * 2)
    with pytest.raises(SystemExit, match="other problems: it has 3, and this file 2"):
        scored(fewer, "--base", str(tmp_path / "base.scores.json"))


def test_rows_carry_their_problem_and_their_model(tmp_path):
    write_json(tmp_path / "p.json", [{"problem": p, "answer": "7"} for p in PROBLEMS])

    def respond(args, tasks, keep):
        for task in tasks:
            keep(task.index, [response()])

    files = []
    for model in (LRM, str(ROOT / "model/Miniature-Instruct")):
        args = GenerateArguments(
            qaf=str(tmp_path / "p.json"), model_dir=model, output_dir=str(tmp_path)
        )
        files.append(generate(args, respond))
    rows = [json.loads(file.read_text()) for file in files]
    for row, problem in zip(rows[0], PROBLEMS, strict=True):
        assert row["problem_digest"] == problem_digest(problem)
        assert row["answered_by"] == {"model_dir": LRM, "model_digest": weights_digest(LRM)}
    # without its settings next to it
    write_json(tmp_path / "moved.json", rows[0])
    assert made_by(tmp_path / "moved.json", rows[0])["model"] == rows[0][0]["answered_by"]
    joined = [row | {"id": f"{i}/{row['id']}"} for i, part in enumerate(rows) for row in part]
    write_json(tmp_path / "joined.json", joined)
    with pytest.raises(SystemExit, match="joined.json: rows 0 and 3 are of two models, model_dig"):
        scored(tmp_path / "joined.json")
    edit(files[0], lambda row: row.update(problem=row["problem"].replace("2+5", "2+4")))
    with pytest.raises(SystemExit, match="p_math_cot.json: row 1 has another problem than"):
        scored(files[0])
    twice = [row | {"problem_id": "a"} for row in rows[0][:2]]
    write_json(tmp_path / "twice.json", twice)
    with pytest.raises(SystemExit, match="twice.json: rows 0 and 1 have the problem_id 'a', but"):
        scored(tmp_path / "twice.json")


# --- Responses ------------------------------------------------------------------------------------


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Path]:
    return make_stages(tmp_path)


# program, arguments, file that is about something else, file that is named
SPLIT = f"--paragraph_tokenizer {LRM} --paragraph_min_tokens 1 --paragraph_max_tokens 9"
JOINS = {
    "cuts of the reflection model": (
        labeling_to_prefix.main, "{paths} --labels {labels} --out {out} " + SPLIT, "labels",
    ),
    "cuts of the judge": (
        labeling_to_prefix.main, "{paths} --judge_cuts {cuts} --out {out} " + SPLIT, "cuts",
    ),
    "the judge's labels": (
        labeling_distill_utils.main,
        "{chunks} --clean --confirmations {confirmed} --paths {paths} --out {out} " + SPLIT,
        "chunks",
    ),
    "data of the baselines": (
        sft_data.main, "{finished} --paths {paths} --sft_out {out} --rpo_out {out}2", "finished",
    ),
    "rows of the calibration": (
        calibrate.main, "rows {paths} --labels {labels} --judge_cuts {cuts} --out {out} " + SPLIT,
        "labels",
    ),
    "choice of the cut": (
        calibrate.main, "choose {finished} --labels {labels} --judge_cuts {cuts} --out {out}",
        "labels",
    ),
    "choice by the judge": (
        calibrate.main, "choose {finished} --labels {labels} --judge_cuts {cuts} --out {out}",
        "cuts",
    ),
    "quality of the labels": (
        strategies.main,
        "{finished} --labels {labels} --judge_cuts {cuts} --out {out} --model_dir " + LRM, "cuts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ["problem", "response"])
@pytest.mark.parametrize("name", JOINS)
def test_files_about_different_things_are_refused(tmp_path, stages, name, what):
    program, line, other = JOINS[name]
    changes = {"problem": {"problem": "8-1?"}, "response": {"path_digest": "0"}}
    edit(stages[other], lambda row: row.update(changes[what]))
    with pytest.raises(SystemExit) as ended:
        program(line.format(out=tmp_path / "out", **stages).split())
    said = str(ended.value)
    assert said.startswith("error: ") and "\n" not in said and "give two files that belong" in said
    assert f"about another {what} than" in said and f"{other}.json" in said and "p/0" in said
    assert not (tmp_path / "out").is_file()


@pytest.mark.parametrize("name", JOINS)
def test_files_without_a_common_response_are_refused(tmp_path, stages, name):
    program, line, other = JOINS[name]
    edit(stages[other], lambda row: row.update(id=row["id"].replace("p", "q", 1)))
    with pytest.raises(SystemExit) as ended:
        program(line.format(out=tmp_path / "out", **stages).split())
    said = str(ended.value)
    assert said.startswith("error: ") and "\n" not in said and "; " in said
    assert not (tmp_path / "out").is_file()


# --- Models ---------------------------------------------------------------------------------------


def test_a_threshold_of_another_model_is_refused(tmp_path):
    other = {"model_dir": "model/Other", "model_digest": "0"}
    threshold = {"tokens_per_reflection": 9, "word_bounded": True, "made_by": {"model": other}}
    cut = {"cut_threshold": 0.5, "cut_second_half": 0.5, "labelled_by": other}
    write_json(tmp_path / "t.json", threshold)
    write_json(tmp_path / "c.json", cut)
    says = "was measured on the model model/Other, whose weights are not those of .*; measure again"
    with pytest.raises(ValueError, match=f"tokens_per_reflection_file: .*t.json {says}"):
        read_tokens_per_reflection(tmp_path / "t.json", True, model=LRM)
    with pytest.raises(ValueError, match=f"cut_file: .*c.json {says}"):
        read_cut_file(tmp_path / "c.json", LRM)
    shipped = f"{LRM}/tokens_per_reflection.json"
    assert read_tokens_per_reflection(shipped, True, model=LRM) > 0
    read_cut_file(tmp_path / "c.json", "owner/on-the-hub")  # nothing is known of it


def test_no_two_models_become_one(tmp_path, stages):
    scores = scored(generated(tmp_path / "a.json", PROBLEMS, ["7"] * 3))
    line = f"{stages['finished']} --model_dir {LRM} --out {tmp_path}/out --models"
    for models, says in (
        (f"A={scores} A={scores}", "models has 'A' twice"),
        (f"none={scores}", "models has 'none', which is a strategy"),
    ):
        with pytest.raises(SystemExit, match=says):
            strategies.main([*line.split(), *models.split()])
    extra = ["--extra", "mine=a.json", "mine=b.json"]
    with pytest.raises(SystemExit, match="give each benchmark a name of its own"):
        benchmarks.main(["collect", str(tmp_path), "--out", str(tmp_path / "out"), *extra])


def test_a_picture_is_of_one_set_of_problems(tmp_path):
    one = scored(generated(tmp_path / "one.json", PROBLEMS, ["7", "0", "7"]))
    two = scored(generated(tmp_path / "two.json", PROBLEMS[::-1], ["7", "0", "7"]))
    flags = ["--save_to", str(tmp_path / "x.png"), "--scores", str(one)]
    plots.main([*flags, str(two)])
    other = scored(generated(tmp_path / "other.json", ["9-2?", *PROBLEMS[1:]], ["7"] * 3))
    with pytest.raises(SystemExit, match="other.scores.json: 1 of 3 problems are not in it"):
        plots.main([*flags, str(other)])


def test_a_table_tells_models_apart_and_names_what_differs(tmp_path, capsys):
    for name, problems, digest in (
        ("a", PROBLEMS, "11"),
        ("b", PROBLEMS, "22"),
        ("c", PROBLEMS[:2], "33"),
    ):
        by = {"model_dir": "m", "lora": "out", "lora_digest": digest}
        file = tmp_path / "all" / "m" / name / "x1_math_cot.json"
        file.parent.mkdir(parents=True)
        scored(generated(file, problems, ["7"] * len(problems), answered_by=by, benchmark="s"))
    flags = [str(tmp_path / "all"), "--save_to", str(tmp_path / "t.png")]
    table.main(flags)
    out, said = capsys.readouterr()
    assert all(f"m (out) {digest}" in out for digest in ("11", "22", "33"))
    assert "s: m (out) 11 has 3 problems and m (out) 33 2, 2 of them the same" in said
    file = tmp_path / "all/m/b/x1_math_cot.scores.json"
    edit(file, lambda problem: problem.update(problem_digest="0"))
    with pytest.raises(SystemExit, match=r"s: m \(out\) 11 and m \(out\) 22 were asked two probl"):
        table.main(flags)
