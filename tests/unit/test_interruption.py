"""Ctrl-C in a terminal, which all processes of a program get: one line, status 130, no traceback,
finished rows kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from miniature import judge
from rea_core.row_files import write_json

ROOT = Path(__file__).parents[2]
LRM = str(ROOT / "model/Miniature-LRM")
REPLY = {"text": "So 3.\n\n</think>\\boxed{7}", "num_tokens": 9, "finish_reason": "stop"}
JUDGE = "--split labeling_distill_use_asw --model_dir oracle --num_workers 2"


def rows(number: int, responses: int) -> list[dict]:
    row = {"problem": "3+4?", "answer": "7", "responses": [REPLY] * responses}
    return [{"id": str(i), **row} for i in range(number)]


def written(name: str) -> Callable[[Path, int], bool]:
    """Whether a program has begun a file."""
    return lambda folder, pid: any(file.stat().st_size for file in folder.glob(name))


def children(folder: Path, pid: int) -> bool:
    """Whether a program has started processes."""
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().strip())


# program, arguments, moment; {0} is a folder
PROGRAMS = {
    "while modules are imported": (
        "rea_rl.sft",
        "--config recipes/miniature/config_reflection_model.yaml",
        lambda folder, pid: "torch" in Path(f"/proc/{pid}/maps").read_text(),
    ),
    "while the verifier starts": (
        "generation.math_verify_all",
        f"{{0}}/a.json --model_dir {LRM} --results {{0}}/log --num_workers 2",
        children,
    ),
    "while answers are scored": (
        "generation.math_verify_all",
        f"{{0}}/a.json --model_dir {LRM} --results {{0}}/log --num_workers 2",
        written(".a.verdicts.jsonl.*"),
    ),
    "while rows are written": (
        "miniature.judge",
        f"--qaf {{0}}/a.json --output_dir {{0}} --paragraph_tokenizer {LRM} {JUDGE}",
        written("oracle/*.part.jsonl"),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ctrl_c_ends_a_program_in_one_line(tmp_path, name):
    module, line, is_time = PROGRAMS[name]
    write_json(tmp_path / "a.json", rows(6000, 20))
    process = subprocess.Popen(
        [sys.executable, "-m", module, *line.format(tmp_path).split()],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not is_time(tmp_path, process.pid) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 130 and out == ""
    assert said.splitlines()[-1] == "error: interrupted by Ctrl-C; what was finished is kept"
    assert "Traceback" not in said and "Process " not in said
    left = [path.name for path in tmp_path.glob("*") if path.name.startswith(".")]
    assert not left, said


def test_rows_that_were_finished_before_ctrl_c_are_kept(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "a.json", rows(9, 1))
    flags = f"--qaf {tmp_path}/a.json --output_dir {tmp_path} --paragraph_tokenizer {LRM} {JUDGE}"
    made, reply = [], judge.reply

    def interrupted(row: dict) -> str:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(row["id"])
        return reply(row)

    monkeypatch.setattr(judge, "reply", interrupted)
    with pytest.raises(SystemExit, match="130"):
        judge.main(flags.split())
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted")
    (part,) = (tmp_path / "oracle").glob("*.part.jsonl")
    assert len(part.read_text().splitlines()) == 5
    monkeypatch.setattr(judge, "reply", lambda row: made.append(row["id"]) or reply(row))
    judge.main(flags.split())
    (done,) = (tmp_path / "oracle").glob("*asw.json")
    assert len(json.loads(done.read_text())) == 9
    assert sorted(made) == sorted(set(made)), "none is made twice"


RANKS = "-m rea_rl.run.ranks --config_file recipes/accelerate_configs/cpu.yaml --num_processes 2"
FAILED = "error: rank 1 ended with {}; its last lines are above"
ENDS = {
    "Ctrl-C": (130, "error: interrupted by Ctrl-C; what was finished is kept"),
    "SIGTERM": (143, ""),
    "fails": (1, "error: wrong\n" + FAILED.format("exit code 1")),
    "killed": (137, FAILED.format("signal 9")),
}


@pytest.mark.parametrize("end", ENDS)
def test_several_ranks_end_without_a_traceback(end):
    process = subprocess.Popen(
        [sys.executable, *RANKS.split(), "tests/unit/asleep.py", end],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert [process.stdout.readline() for _ in range(2)] == ["rank\n"] * 2
    if end == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif end == "SIGTERM":
        process.terminate()
    said = process.communicate(timeout=60)[1].strip()
    assert (process.returncode, said) == ENDS[end]
