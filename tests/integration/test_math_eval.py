"""`scripts/math_eval.sh` on the sample with the miniature: table, picture, and what a second run
does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def math_eval(output: Path, python: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "VENV": str(Path(python).parents[1]),
        "EVAL_DATA": "dataset/eval_sample",
        "EVAL_OUT": str(output),
        "EVAL_LIMIT": "2",
        "NUM_SAMPLES": "2",
        "BUDGETS": "200 768",
    }
    return subprocess.run(
        ["bash", "scripts/math_eval.sh", "cpu", "MINIATURE_BASE", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_sample_on_the_miniature(tmp_path, fast_python):
    first = math_eval(tmp_path, fast_python)
    assert first.returncode == 0, first.stderr
    header, _, row = first.stdout.split("\n\n")[-3].splitlines()
    assert all(
        name in header
        for name in ("GSM8K", "olympiadbench", "miniature", "average", "TR %", "no room %")
    )
    assert "MINIATURE_BASE-0" in row and "100.0" in row  # its own TR
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000
    folder = tmp_path / "MINIATURE_BASE-0" / "Miniature-LRM"
    scores = json.loads((folder / "x2_math_cot.scores.json").read_text())
    assert scores["num_responses"] == 2 * 13 and scores["budgets"].keys() == {"200", "768"}
    assert scores["groups"]["miniature"]["answered"]["value"] == 1.0
    written = (folder / "x2_math_cot.json").stat().st_mtime_ns
    (folder / "x2_math_cot.scores.json").unlink()
    second = math_eval(tmp_path, fast_python)  # as after a kill between generation and scoring
    assert second.returncode == 0 and "is complete" in second.stderr
    assert (folder / "x2_math_cot.json").stat().st_mtime_ns == written
    assert second.stdout.split("\n\n")[-3] == first.stdout.split("\n\n")[-3]
