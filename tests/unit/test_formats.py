"""Data as users have them: files in any format under any name, golds as data sets write them, one
set of keys."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from generation import clean_dataset
from generation.arguments import GenerateArguments
from generation.generate import generate
from miniature import judge
from rea_core.formats import bare_name
from rea_core.problems import load_problems
from rea_core.recipe import RecipeParser
from rea_core.row_files import write_json
from rea_core.rows import read_rows
from rea_rl.sft import read_examples

ROOT = Path(__file__).parents[2]
LRM = str(ROOT / "model/Miniature-LRM")
# cells with a separator, quotes, a line end, other alphabets; a number that is a text
ROWS = [
    {"problem": 'Is "1+1, or 2"\ntwo; ü 好?', "answer": "007"},
    {"problem": "2 + 2?\t", "answer": "1/2"},
]


def table(separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["problem", "answer"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


LIST = json.dumps(ROWS, indent=1).encode()
LINES = "\n".join(map(json.dumps, ROWS)).encode()
CONTENTS = {
    "list": LIST,
    "lines": LINES,
    "lines with a mark, of Windows": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n") + b"\r\n",
    "CSV": table(","),
    "CSV of other countries": b"\xef\xbb\xbf" + table(";"),
    "tabs": table("\t"),
    "Parquet": parquet(),
    "list in gzip": gzip.compress(LIST),
    "lines in gzip": gzip.compress(LINES),
    "CSV in xz": lzma.compress(table(",")),
    "Parquet in bzip2": bz2.compress(parquet()),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_a_file_holds_decides_and_not_its_name(tmp_path, content):
    for name in ("a.json", "a.jsonl", "a.csv", "a.parquet", "a.json.gz", "a.gz", "a.txt", "a"):
        (tmp_path / name).write_bytes(CONTENTS[content])
        assert read_rows(str(tmp_path / name)) == ROWS, name


def test_a_saved_dataset_is_read_from_its_folder(tmp_path):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(
        str(tmp_path / "several")
    )
    assert read_rows(str(tmp_path / "one"), "train") == ROWS
    assert read_rows(str(tmp_path / "several"), "test") == ROWS
    with pytest.raises(ValueError, match=r"several: cannot be read .*train.*; correct the name"):
        read_rows(str(tmp_path / "several"), "train")


def test_the_configuration_of_a_hub_dataset_reaches_every_program(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [{"question": "6 x 7?", "answer": "6 x 7 = 42\n#### 42", "prompt": "a",
                 "completion": "b"}]  # fmt: skip

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    parser = RecipeParser(GenerateArguments)
    flags = ["--dataset_name", "o/s", "--dataset_config", "main", "--dataset_train_split", "test"]
    (args,) = parser.parse_args_and_config(
        [*flags, "--model_dir", "m", "--output_dir", str(tmp_path)]
    )

    def respond(args, tasks, keep):
        for task in tasks:
            assert task.row["answer"] == "42"
            keep(task.index, [{"text": "42", "num_tokens": 1, "finish_reason": "stop"}])

    assert generate(args, respond).name == "s_math_cot.json"
    write_json(tmp_path / "recipe.yaml", {"dataset_name": "o/s", "qaf": "x", "model_dir": "m"})
    with pytest.raises(ValueError, match="qaf is given twice, also as qaf"):
        RecipeParser(GenerateArguments).parse_args_and_config(
            ["--config", str(tmp_path / "recipe.yaml")]
        )
    read_examples("o/s", "test", ("prompt", "completion"), "main")
    with pytest.raises(SystemExit, match="1 of 1 problems are not in it"):
        scores = {"groups": {}, "mode": "strict", "problems": [{"id": "9", "responses": []}]}
        scores |= {"num_responses": 0, "num_problems": 1}
        write_json(tmp_path / "v.scores.json", scores)
        verdicts = [
            "--verdicts",
            str(tmp_path / "v.scores.json"),
            "--out",
            str(tmp_path / "o.json"),
        ]
        clean_dataset.main([*flags, *verdicts])
    assert asked == [("o/s", "main", "test")] * 3


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"answer": 42}, "42"),
        ({"answer": 42.0}, "42"),
        ({"answer": 1e22}, "10000000000000000000000"),
        ({"answer": 0.00001}, "0.00001"),
        ({"answer": " 4 2 "}, "4 2"),
        ({"answer": "So 42.\n#### 42"}, "42"),
        ({"answer": "#### 1,000\n"}, "1,000"),
        ({"answer": "####42"}, "42"),
        ({"answer": r"We get $\boxed{\frac{1}{2}}$."}, r"\frac{1}{2}"),
        ({"answer": r"\boxed{3} and \boxed{5}"}, "3, 5"),
        ({"answer": ["42"]}, "42"),
        ({"answer": ["1/2", 0.5, "1/2"]}, ["1/2", "0.5"]),
        ({"answer": None, "solution": r"\boxed{7}"}, "7"),
        ({"solution": r"First \boxed{1}, then \fbox{ 7 }."}, "7"),
        ({"final_answer": ["2,3"]}, "2,3"),
        ({"Answer": "8"}, "8"),
        ({"expected_answer": "8"}, "8"),
        ({"solution": r"\boxed{1}", "answer": "8"}, "8"),
    ],
)
def test_the_gold_answer_is_found_in_the_forms_of_data_sets(tmp_path, row, gold):
    write_json(tmp_path / "a.json", [{"Question": "6 x 7?", **row}])
    (problem,) = load_problems(str(tmp_path / "a.json"))
    assert (problem["problem"], problem["answer"]) == ("6 x 7?", gold)


def test_a_column_that_is_named_is_taken_as_it_is(tmp_path):
    write_json(tmp_path / "a.json", [{"p": "6 x 7?", "solution": "forty-two", "answer": "x"}])
    (row,) = load_problems(str(tmp_path / "a.json"), problem_column="p", answer_column="solution")
    assert (row["problem"], row["answer"]) == ("6 x 7?", "forty-two")


def test_a_program_reads_a_packed_table_to_its_end(tmp_path):
    text = "problem,answer,id,messages\n3+4?,7,a,x\n"
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    flags = f"--qaf {tmp_path}/a.csv.gz --split json --model_dir o --output_dir {tmp_path}"
    with pytest.raises(SystemExit, match="a.csv.gz: row 0 has the 'messages' 'x'; write a"):
        judge.main(flags.split())
    assert bare_name("x/a.b.csv.gz") == "a.b" and bare_name("openai/gsm8k") == "gsm8k"
