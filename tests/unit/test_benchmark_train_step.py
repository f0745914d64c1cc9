"""The benchmark of the training step runs to its end on a CPU, and its variants compute the
same."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_variants_agree_and_are_reported(fast_python, tmp_path):
    out = tmp_path / "benchmarks" / "step.json"
    options = [
        "--prompts",
        "1",
        "--group",
        "2",
        "--tokens_per_forward",
        "400",
        "--reference_pass",
        "--out",
        str(out),
    ]
    result = subprocess.run(
        [fast_python, str(ROOT / "scripts" / "benchmark" / "train_step.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert report["variants"].keys() == {"shared", "unshared", "padded", "recomputed", "packed"}
    assert report["unique_tokens"] < report["raw_tokens"] and report["forwards"] > 1
    for name in ("", "_padded", "_recomputed", "_packed"):
        assert report[f"gradient_cosine{name}"] == pytest.approx(1, abs=1e-5)
    assert report["mean_logp_difference"] < 1e-5
    ratio = report["variants"]["padded"]["seconds"] / report["variants"]["shared"]["seconds"]
    assert report["speedup_vs_padded"] == pytest.approx(ratio)
    assert "speedup_vs_unshared" in result.stdout
