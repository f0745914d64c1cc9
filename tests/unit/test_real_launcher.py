"""The launcher of the real model: wrong settings end it at once, a stage that fails ends it there.
Its programs are stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Plans are real; the study of the rows fails; all else says so and succeeds.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *rea_rl.study\\ *--dry_run*) exec {python} "$@" ;;
esac
echo "$*" >>"$SAID"
[[ "$*" != *rea_rl.study\\ * ]] || exit 3
"""
DONE = (
    "dataset/words/test.json",
    "output/Qwen2.5-Coder-0.5B-Instruct/LRM/config.json",
    "output/Qwen2.5-Coder-0.5B-Instruct/LRM_lora/adapter_model.safetensors",
    "output/Qwen2.5-Coder-0.5B-Instruct/reflection_model_lora/adapter_model.safetensors",
    "output/Qwen2.5-Coder-0.5B-Instruct/reflection_model/config.json",
    "output/Qwen2.5-Coder-0.5B-Instruct/tokens_per_reflection.json",
    "output/Qwen2.5-Coder-0.5B-Instruct/cut.json",
)


@pytest.fixture
def real(tmp_path):
    """Function that runs the launcher in a checkout whose stages up to the rows are complete."""
    folder = tmp_path / "checkout"
    for name in ("scripts", "recipes", "model"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    for name in DONE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[]")
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)

    def run(**variables: str) -> tuple[subprocess.CompletedProcess, str]:
        environment = {
            **{"PATH": os.environ["PATH"], "VENV": str(tmp_path / "venv")},
            **{"SAID": str(tmp_path / "said"), "CUDA_VISIBLE_DEVICES": ""},
            "PYTHONPATH": str(ROOT / "src"),
        }
        done = subprocess.run(
            ["bash", str(folder / "scripts/real.sh")],
            env=environment | variables, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        said = tmp_path / "said"
        return done, said.read_text() if said.exists() else ""

    return run


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"UNTIL": "detektor"}, "UNTIL is 'detektor'; it is one of: problems lrm detector"),
        ({"SEEDS": "two"}, "SEEDS is 'two'; give a number of 1 or more"),
        ({"STEPS": "0"}, "STEPS is '0'"),
        ({"RUNS_PER_GPU": "-1"}, "RUNS_PER_GPU is '-1'"),
        ({"LIMIT": "1.5"}, "LIMIT is '1.5'"),
        ({"ROWS": "base rea_lr"}, "rows ['rea_lr'] are unknown; there are base, grpo"),
    ],
)
def test_a_wrong_setting_ends_it_before_any_stage(real, variables, words):
    done, said = real(**variables)
    assert done.returncode == 1 and words in done.stderr and said == ""


def test_a_study_that_fails_ends_it_there(real):
    done, said = real()
    assert done.returncode == 3
    assert "rea_rl.study " in said and "forced_budgets" not in said and "real_report" not in said
