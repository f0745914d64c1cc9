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
        "--groups",
        "2",
        "--repeats",
        "2",
        "--out",
        str(out),
    ]
    result = subprocess.run(
        [fast_python, str(ROOT / "scripts" / "benchmark" / "train_step.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert report["variants"].keys() == {
        "shared", "trl_tree", "unshared", "padded", "recomputed", "packed", "unfused"
    }  # fmt: skip
    for variant in report["variants"].values():
        assert len(variant["runs"]) == 2 and variant["seconds"] == min(variant["runs"])
        assert variant["spread"] == pytest.approx(max(variant["runs"]) / variant["seconds"] - 1)
    assert "model/Qwen2.5-Coder-0.5B-Reflection" in report["cuts"]
    assert report["unique_tokens"] < report["raw_tokens"] and report["forwards"] > 1
    for name in ("", "_trl_tree", "_padded", "_recomputed", "_packed", "_unfused"):
        assert report[f"gradient_cosine{name}"] == pytest.approx(1, abs=1e-5)
    assert report["mean_logp_difference"] < 1e-5
    ratio = report["variants"]["padded"]["seconds"] / report["variants"]["shared"]["seconds"]
    assert report["speedup_vs_padded"] == pytest.approx(ratio)
    assert "speedup_vs_unshared" in result.stdout
    assert report["speedup_vs_trl_tree"] > 0 and report["versions"]["trl"]
    assert report["attention_of_trl_tree"] == "sdpa with a dense mask"
    assert report["by_revisions"]["2"]["speedup"] > 0
