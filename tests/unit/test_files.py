"""Files of other systems and odd values: what every reader takes, and what it refuses with file
and row."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from tiny import save_model

from generation import (
    clean_dataset,
    generate,
    labeling_distill_utils,
    labeling_to_prefix,
    math_verify_all,
    sft_data,
)
from generation.evaluation import benchmarks as eval_data
from generation.generation_file import GenerationFile, read_generations
from rea_core.json_text import read_json
from rea_core.problems import load_problems
from rea_core.row_files import write_json
from rea_core.rows import read_rows
from rea_rl.sft import read_examples
from rea_rl.viewer import page_data

# Scores are also appended to a log in the working directory.
pytestmark = pytest.mark.usefixtures("elsewhere")

ROWS = [{"problem": "1+1?", "answer": "2"}, {"problem": "2+2?", "answer": "4"}]
LINES = [json.dumps(row) for row in ROWS]
BOM = "\ufeff"


def write(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


# --- Encodings and ends of lines ------------------------------------------------------------------


def test_marks_blank_last_lines_and_ends_of_lines_of_other_systems_are_read(tmp_path):
    whole = json.dumps(ROWS, indent=1)
    for name, content in (
        ("a.jsonl", BOM + "\n".join(LINES)),
        ("a.jsonl", "\n".join(LINES) + "\n\n"),
        ("a.jsonl", "\n".join(LINES) + "\n \t\n\n"),
        ("a.jsonl", "\r\n".join(LINES) + "\r\n\r\n"),
        ("a.jsonl", "\r".join(LINES) + "\r"),
        ("a.jsonl", BOM + LINES[0] + "\n" + BOM + LINES[1]),  # two files, joined
        ("a.json", BOM + whole),
        ("a.json", whole.replace("\n", "\r\n") + "\r\n\r\n"),
        ("a.json", BOM + whole.replace("\n", "\r")),
    ):
        path = write(tmp_path, name, content)
        assert read_rows(path) == ROWS, content
        assert [row["answer"] for row in load_problems(path)] == ["2", "4"]


def test_wide_encodings_are_named(tmp_path):
    for encoding, name in (
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
    ):
        for file in ("a.json", "a.jsonl"):
            with pytest.raises(
                ValueError,
                match=rf"{file}, line 1: not UTF-8 \(it is {name}\); save the file as UTF-8",
            ):
                read_rows(write(tmp_path, file, json.dumps(ROWS).encode(encoding)))


# --- Numbers that are none ------------------------------------------------------------------------

BAD_NUMBERS = [
    ('{"problem": "2+2?", "answer": NaN}', "NaN in 'answer'"),
    ('{"problem": "2+2?", "answer": Infinity}', "Infinity in 'answer'"),
    ('{"problem": "2+2?", "answer": -Infinity}', "-Infinity in 'answer'"),
    ('{"problem": "2+2?", "answer": 1e999}', "1e999 in 'answer'"),
    ('{"problem": "2+2?", "answer": "4", "level": NaN}', "NaN in 'level'"),
    ('{"problem": "2+2?", "answer": "4", "tags": [1, {"x": NaN}]}', "NaN in 'tags'"),
    ('{"problem": "2+2?", "answer": ' + "9" * 5000 + "}", "a number of 5,000 digits in 'answer'"),
    ('{"problem": "2+2?", "answer": -' + "9" * 4301 + "}", "a number of 4,301 digits in 'answer'"),
    # Half of a character that takes two escapes.
    ('{"problem": "\\ud83d?", "answer": "4"}', r"half a character, '\ud83d'"),
    ('{"problem": "2+2?", "answer": "4", "tags": [{"x": "\\uDC00"}]}', r"a character, '\udc00'"),
]


def test_numbers_and_characters_that_are_none_are_refused_with_their_row(tmp_path):
    for line, message in BAD_NUMBERS:
        files = {"a.json": f"[{LINES[0]},\n{line}]", "a.jsonl": f"{LINES[0]}\n{line}\n"}
        for name, content in files.items():
            with pytest.raises(ValueError, match=r"row 1 has") as refused:
                read_rows(write(tmp_path, name, content))
            assert message in str(refused.value) and str(tmp_path / name) in str(refused.value), (
                line[:60]
            )


def test_numbers_that_are_numbers_are_read(tmp_path):
    digits = "9" * 400
    line = f'{{"problem": "2+2?", "answer": {digits}}}\n'
    line += '{"problem": "\\ud83d\\ude00", "answer": 0.5}'
    assert [row["answer"] for row in load_problems(write(tmp_path, "a.jsonl", line))] == [
        digits,
        "0.5",
    ]
    # as in configurations of Mamba models
    config = write(tmp_path, "config.json", '{"limit": [0.0, Infinity]}')
    assert read_json(config) == {"limit": [0.0, math.inf]}


@pytest.mark.parametrize(
    "command", ["generate", "collect", "clean_dataset", "sft_data", "scores", "sft", "viewer"]
)
def test_every_reader_refuses_them(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    nan = f'[{LINES[0]}, {{"problem": "2+2?", "answer": NaN, "prompt": "x", "completion": NaN}}]'
    write(tmp_path, "a.json", nan)
    write(tmp_path, "amc23_test.json", nan)
    (tmp_path / "rollouts").mkdir()
    write(tmp_path, "rollouts/step-0.jsonl", '{"kind": "original"}\n{"advantage": NaN}\n')
    calls = {
        "generate": lambda: generate.main(["--qaf", "a.json", "--model_dir", "m", "--api",
                                           "--api_base", "http://a/v1",
                                           "--api_model", "m"]),
        "collect": lambda: eval_data.main(["collect", ".", "--out", "out"]),
        "clean_dataset": lambda: clean_dataset.main(["--dataset", "a.json", "--verdicts",
                                                     "s.json"]),
        "sft_data": lambda: sft_data.main(["a.json", "--paths", "a.json"]),
        "scores": lambda: math_verify_all.main(["a.json", "--model_dir",
                                                str(save_model(tmp_path / "m"))]),
        "sft": lambda: read_examples("a.json", "train", ("prompt", "completion")),
        "viewer": lambda: page_data(tmp_path),
    }  # fmt: skip
    write_json(tmp_path / "s.json", {"groups": {}, "problems": []})
    with pytest.raises((SystemExit, ValueError), match="row 1 has NaN in '(answer|advantage)'"):
        calls[command]()


# --- Nulls, and values of another type ------------------------------------------------------------

GOOD = {"text": "It is \\boxed{2}", "num_tokens": 9, "finish_reason": "stop"}


def generation(response: object = None, **columns: object) -> dict:
    return {
        "id": "p",
        "problem": "1+1?",
        "answer": "2",
        "responses": [GOOD if response is None else response],
    } | columns


WRONG_ROWS = [
    (generation(GOOD | {"text": None}), "response with the text null"),
    (generation(GOOD | {"text": ["a"]}), 'response with the text ["a"]'),
    (generation(GOOD | {"num_tokens": None}), "response with the num_tokens null"),
    (generation(GOOD | {"num_tokens": "9"}), 'response with the num_tokens "9"'),
    (generation(GOOD | {"num_tokens": True}), "response with the num_tokens true"),
    (generation(GOOD | {"num_tokens": -1}), "response of -1 tokens"),
    (generation(GOOD | {"num_tokens": 10**30}), "response of 1000000"),
    (generation(GOOD | {"finish_reason": None}), "response with the finish_reason null"),
    (generation(GOOD | {"prompt_thinking": "maybe"}), "prompt_thinking \"maybe\""),
    (generation("text"), 'has the response "text"'),
    (generation(responses=None), "'responses' null"),
    (generation(responses=[]), "no responses"),
    (generation(id=None), "'id' null"),
    (generation(problem=None), "'problem' null"),
    (generation(answer=None), "'answer' null"),
    (generation(answer=2), "'answer' 2; write it as a text"),
    (generation(answer=["2", None]), "'answer'"),
    (generation(answer=[]), "'answer'"),
    (generation(level=[1]), "'level' [1]"),
    (generation(level=True), "'level' True"),
    (generation(benchmark=7), "'benchmark' 7"),
    (generation(level="2"), "row 0 1 and row 1 '2' have levels of two kinds"),
]  # fmt: skip


def test_values_of_a_generation_file_are_checked_and_not_only_its_keys(tmp_path):
    model, file = str(save_model(tmp_path / "model")), tmp_path / "a.json"
    first = generation(id="first", level=1)
    for row, message in WRONG_ROWS:
        write_json(file, [first, {"level": 2} | row])
        with pytest.raises(SystemExit, match=r"error: .*a\.json: row (0|1)\b") as refused:
            math_verify_all.main([str(file), "--model_dir", model])
        assert message in str(refused.value), row
    write_json(
        file,
        [
            first,
            generation(id=7, level=None),
            generation(id="x", level=2.5),
            generation(answer=["3", "2"]),
        ],
    )
    math_verify_all.main([str(file), "--model_dir", model])
    assert [row["id"] for row in read_generations(file)] == ["first", "7", "x", "p"]


def test_a_second_response_is_not_left_out_in_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(save_model(tmp_path / "model"))
    write_json(tmp_path / "paths.json", [generation()])
    columns = {"id": "p/0", "cut": 0, "problem_id": "p", "use_answer": True, "paragraphs": ["a"]}
    write_json(
        tmp_path / "two.json", [generation(**columns, responses=[GOOD | {"logprobs": []}] * 2)]
    )
    splitting = ["--paragraph_tokenizer", model]
    judged = [
        "two.json",
        "--clean",
        "--confirmations",
        "two.json",
        "--paths",
        "paths.json",
        "--out",
        "o.json",
    ]
    commands = [
        (sft_data, ["two.json", "--paths", "paths.json"]),
        (labeling_to_prefix, ["paths.json", "--labels", "two.json", "--out", "o.json", *splitting]),
        (labeling_distill_utils, ["two.json", "--candidates", "o.json"]),
        (labeling_distill_utils, [*judged, *splitting]),
    ]
    for module, flags in commands:
        with pytest.raises(
            SystemExit,
            match=r"error: two\.json: row 0 has 2 responses, but only one would be read",
        ):
            module.main(flags)


def test_an_id_that_is_null_is_no_id(tmp_path):
    path = write(tmp_path, "a.json", json.dumps([row | {"id": None} for row in ROWS]))
    assert [row["id"] for row in load_problems(path)] == ["0", "1"]


# --- Duplicates -----------------------------------------------------------------------------------


def test_problems_that_are_there_twice_are_told_with_their_counts(tmp_path, caplog):
    rows = [
        *ROWS,
        {"problem": " 1+1?\n", "answer": "2"},
        {"problem": "2+2?", "answer": "5"},
        {"problem": "3?", "answer": "3"},
    ]
    with caplog.at_level(logging.WARNING):
        assert len(load_problems(write(tmp_path, "a.json", json.dumps(rows)))) == 5
    assert (
        "2 problems are there more than once, in 4 of 5 rows; the first in rows 0, 2" in caplog.text
    )
    assert "1 problems have two golds; the first: row 1 '4', row 3 '5'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_problems(write(tmp_path, "a.json", json.dumps(ROWS)))
        paths = [row | {"problem_id": "p", "id": str(i)} for i, row in enumerate([ROWS[0]] * 4)]
        load_problems(write(tmp_path, "b.json", json.dumps(paths)))
    assert not caplog.text


def test_a_row_that_was_written_twice_stands_once(tmp_path):
    output = GenerationFile(tmp_path / "a.json", {})
    for index, name in ((0, "old"), (1, "b"), (0, "new")):
        output.append(index, {"id": name})
    output.close()
    assert read_rows(str(tmp_path / "a.json")) == [{"id": "new"}, {"id": "b"}]
