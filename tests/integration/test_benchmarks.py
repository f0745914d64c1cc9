"""The benchmark of whole runs at tiny size, on the servers of this session."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def test_end_to_end_at_tiny_size(policy_server, reflection_server, fast_python, tmp_path):
    out = tmp_path / "end_to_end.json"
    finished = subprocess.run(
        [
            *(fast_python, "scripts/benchmark/end_to_end.py", "--tiny", "--steps", "3"),
            *("--servers", policy_server.base_url, reflection_server.base_url, "--json", str(out)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    runs = json.loads(out.read_text())["runs"]
    assert list(runs) == ["GRPO, 2G samples", "REA-RL", "REA-RL, overlap"]
    assert all(values["seconds_per_step"] > 0 for values in runs.values())
    # With overlap the trainer waits for a part of the rollout only; without it for all of it.
    assert runs["REA-RL"]["timing/rollout_wait"] == pytest.approx(
        runs["REA-RL"]["timing/rollout"], rel=0.1
    )
    assert (
        runs["REA-RL, overlap"]["timing/rollout_wait"] < runs["REA-RL, overlap"]["timing/rollout"]
    )
    assert "of REA-RL" in finished.stdout
