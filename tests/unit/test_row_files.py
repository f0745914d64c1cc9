"""Files of rows that are read and written one row at a time: the same rows, places and errors as
of the whole text."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import pytest

from generation.generation_file import GenerationFile, read_generations
from rea_core import row_files
from rea_core.row_files import Rows, RowWriter, open_rows, write_json

ROWS = [
    {
        "id": str(i),
        "text": text,
        "numbers": [i, -0.5, 1e30, {"x": None}],
        "deep": {"a": [["[", "]"], '"', "\\"]},
    }
    for i, text in enumerate(
        ["", "π ≈ 3.14 √2 𝔸", 'a "quoted" \\ \u2028 line', "x" * 300, "日本" * 90, "]},{["]
    )
]
LAYOUTS = {
    "one row a line": "[\n"
    + ",\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    + "\n]\n",
    "one line": json.dumps(ROWS),
    "no spaces": json.dumps(ROWS, separators=(",", ":"), ensure_ascii=False),
    "indented": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "tabs and other ends of lines": "\ufeff" + json.dumps(ROWS, indent="\t").replace("\n", "\r\n"),
    "a row a line": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_rows_whatever_is_read_at_once(
    tmp_path, monkeypatch, layout, chunk
):
    monkeypatch.setattr(row_files, "CHUNK", chunk)
    file = tmp_path / ("a.jsonl" if layout == "a row a line" else "a.json")
    file.write_bytes(LAYOUTS[layout].encode())
    rows = open_rows(file)
    assert list(rows) == ROWS and len(rows) == 6
    assert [rows[i] for i in (4, 0, -1)] == [ROWS[i] for i in (4, 0, -1)]
    assert list(rows[1:4]) == ROWS[1:4] and list(rows.select([5, 2])) == [ROWS[5], ROWS[2]]
    assert list(pickle.loads(pickle.dumps(rows[2:]))) == ROWS[2:]
    with pytest.raises(IndexError):
        rows[6]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1},\n {"a": tru}]', "a.json, line 2, column 8: not JSON"),
        (
            "a.json",
            '[{"a": 1}\n {"a": 2}]',
            "a.json, line 2, column 2: not JSON .Expecting ',' delimiter",
        ),
        ("a.json", '[{"a": 1},\n', "a.json, line 2, column 1: not JSON"),
        ("a.json", '[{"a": 1}', "a.json, line 1, column 10: not JSON"),
        ("a.json", '[{"a": 1}]\n[]', "a.json, line 2, column 1: not JSON .Extra data"),
        (
            "a.json",
            '[{"é": 1},\r\n\r\n {"é": "x}]',
            "a.json, line 3, column 8: not JSON .Unterminated string",
        ),
        ("a.json", b'[{"a": 1},\n {"a": "\xff"}]', "a.json, line 2: not UTF-8"),
        ("a.json", '[{"a": 1}, {"b": [NaN]}]', "a.json: row 1 has NaN in 'b'; write a number"),
        ("a.json", '[{"a": 1}, 7, {"a": 1}]', "a.json: row 1 must be an object, but is '7'"),
        ("a.json", "[]", "a.json: must be a list of at least one row, but is empty"),
        ("a.json", '{"a": [1]}', "a.json: must be a list of at least one row, but is dict"),
        ("a.jsonl", '{"a": 1}\r{"a": "\rx"}', "a.jsonl, line 2, column "),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', "a.jsonl, line 2: not UTF-8"),
    ],
)
@pytest.mark.parametrize("chunk", [2, 1 << 20])
def test_mistakes_are_named_with_their_place(tmp_path, monkeypatch, name, content, message, chunk):
    monkeypatch.setattr(row_files, "CHUNK", chunk)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        open_rows(tmp_path / name)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    write_json(tmp_path / "a.json", ROWS)
    rows = open_rows(tmp_path / "a.json")
    write_json(tmp_path / "a.json", ROWS[1:])
    with pytest.raises(
        ValueError, match=r"a\.json was changed while it was read; run the command again"
    ):
        list(rows)


def test_the_digest_is_of_the_rows_and_not_of_what_is_between_them(tmp_path):
    for name, content in (
        ("a.json", LAYOUTS["one row a line"]),
        ("b.jsonl", LAYOUTS["a row a line"]),
    ):
        (tmp_path / name).write_text(content)
    one, other = open_rows(tmp_path / "a.json"), open_rows(tmp_path / "b.jsonl")
    assert one.digest == other.digest != one[:5].digest


def test_batches_are_all_rows_in_order(tmp_path):
    write_json(tmp_path / "a.json", ROWS)
    batches = list(open_rows(tmp_path / "a.json").batches(400))
    assert len(batches) > 2 and [row for batch in batches for row in batch] == ROWS


def test_sections_are_written_one_after_the_other_and_nothing_stays_after_an_error(tmp_path):
    with RowWriter(tmp_path / "a.json", num_sections=3) as out:
        for i, section in enumerate((2, 0, 1, 0, 2)):
            out.add({"i": i}, section)
    assert [row["i"] for row in open_rows(tmp_path / "a.json")] == [1, 3, 2, 0, 4]
    before = (tmp_path / "a.json").read_bytes()
    assert (
        before
        == b"[\n" + b",\n".join(json.dumps({"i": i}).encode() for i in (1, 3, 2, 0, 4)) + b"\n]\n"
    )
    with pytest.raises(ValueError, match="no more"), RowWriter(tmp_path / "a.json") as out:
        out.add({})
        raise ValueError("no more")
    assert (tmp_path / "a.json").read_bytes() == before and [
        path.name for path in tmp_path.iterdir()
    ] == ["a.json"]


def test_written_files_are_as_before(tmp_path):
    for value in (ROWS, [], iter(ROWS)):
        rows = value if isinstance(value, list) else ROWS
        write_json(tmp_path / "a.json", value)
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        assert (tmp_path / "a.json").read_text() == f"[\n{lines}\n]\n"


def paths(file: Path, number: int) -> Path:
    response = {"text": "words of a path " * 1250, "num_tokens": 5000, "finish_reason": "stop"}
    rows = (
        {"id": f"p{i}", "problem": "x", "answer": "1", "responses": [response]}
        for i in range(number)
    )
    write_json(file, rows)
    return file


def test_neither_rows_nor_a_generation_file_are_held_in_memory(tmp_path):
    file = paths(tmp_path / "a.json", 1000)  # 20 MB
    tracemalloc.start()
    rows = read_generations(file)
    output = GenerationFile(tmp_path / "b.json", {})
    for i, row in enumerate(rows):
        output.append(i, row)
    again = GenerationFile(tmp_path / "b.json", {})
    again.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "b.json").read_bytes() == file.read_bytes() and isinstance(rows, Rows)
    assert peak < 7e6 < file.stat().st_size / 2
