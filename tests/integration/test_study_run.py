"""The study from end to end on real servers: the base and one trained row, one step, then once
more with nothing to do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TRAINER = (
    *("{python}", "-m", "rea_rl.grpo", "--use_cpu", "true"),
    *("--tokens_per_reflection_file", "{threshold}"),
    *("--prompts_per_step", "2", "--eval_strategy", "no", "--max_eval_problems", "2"),
)


@pytest.fixture(scope="module")
def study(policy_server, reflection_server, fast_python, tmp_path_factory):
    """Function that runs the study in one folder, and that folder."""
    folder = tmp_path_factory.mktemp("study")
    threshold = folder / "threshold.json"
    threshold.write_text(json.dumps({"tokens_per_reflection": 70.0, "word_bounded": True}))
    command = [
        *(fast_python, "-m", "rea_rl.study", "--rows", "base", "rea_rl"),
        *("--seeds", "1", "--steps", "1"),
        *("--eval_problems", "10", "--work", str(folder / "work"), "--out", str(folder / "out")),
        *("--model", policy_server.config.model, "--policy_server", policy_server.base_url),
        *("--reflection_server", reflection_server.base_url, "--"),
        *(part.format(threshold=threshold, python=fast_python) for part in TRAINER),
        *("--reflection_model", reflection_server.config.model),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def run():
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
        )

    return run, folder


def test_two_rows_from_end_to_end(study):
    run, folder = study
    finished = run()
    assert finished.returncode == 0, finished.stderr
    report = json.loads((folder / "out" / "study.json").read_text())
    base, trained = report["rows"]
    assert (base["name"], trained["name"]) == ("base", "rea_rl")
    assert base["tr"] == 100 and 0 < base["tokens"] < 768 and 0 < trained["tokens"] < 768
    assert 0 < base["accuracy_low"] <= base["accuracy"] <= base["accuracy_high"] <= 1
    assert {path.name for path in (folder / "out").iterdir()} == {
        "study.md", "study.json", "tradeoff.png", "training.png", "reflection.png"
    }  # fmt: skip
    rows = (
        (folder / "work" / "rea_rl" / "seed-0" / "rollouts" / "step-0.jsonl")
        .read_text()
        .splitlines()
    )
    assert len(rows) == 16


def test_what_is_finished_is_skipped(study):
    run, folder = study
    stamps = {
        path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*") if path.is_file()
    }
    finished = run()
    assert finished.returncode == 0, finished.stderr
    assert stamps == {
        path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*") if path.is_file()
    }
