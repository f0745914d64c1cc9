"""The offline launchers one after the other, as from a fresh clone, and a generation that is
killed half-way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LAUNCHERS = (
    "reflection_model_train",
    "overthinking_detection",
    "sft_train",
    "rpo_train",
    "reflection_model_eval",
)
STRATEGIES = {"none", "random_50", "random_60", "random_70", "random_80", "random_90"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what the launchers need, without anything that a run has written; trainings are
    short."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (
        "src",
        "scripts",
        "recipes",
        "dataset/miniature",
        "model/Miniature-LRM",
        "model/Miniature-Instruct",
    ):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("reflection_model", "SFT", "RPO"):
        with (folder / f"recipes/miniature/config_{name}.yaml").open("a") as recipe:
            recipe.write("max_steps: 1\n")
    return folder


def environment(clone: Path, python: str) -> dict[str, str]:
    sizes = {"TRAIN_LIMIT": "4", "EVAL_LIMIT": "3", "RECIPE_SET": "miniature", "NUM_GPUS": "0"}
    return {
        **os.environ,
        **sizes,
        "PYTHONPATH": str(clone / "src"),
        "VENV": str(Path(python).parents[1]),
    }


def launch(clone: Path, python: str, name: str) -> str:
    command = ["bash", f"scripts/{name}.sh"]
    finished = subprocess.run(
        command,
        cwd=clone,
        env=environment(clone, python),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    return finished.stdout


@pytest.fixture(scope="module")
def printed(clone, fast_python):
    """Output of every launcher, in the order in which one needs what another wrote."""
    return {name: launch(clone, fast_python, name) for name in LAUNCHERS}


def rows(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def test_every_stage_reads_what_the_one_before_it_wrote(clone, printed):
    output = clone / "output"
    train = rows(output / "Miniature-LRM/train_rl_math_cot.json")
    cuts = rows(output / "oracle/train_rl_math_cot_labeling_distill_use_asw_cuts.json")
    assert [row["id"] for row in cuts] == [f"train_rl-{i}/{k}" for i in range(4) for k in range(4)]
    examples = rows(output / "miniature/reflection_training.json")
    assert len(examples) == 16 and all(
        train[i // 4]["problem"] in str(e["prompt"]) for i, e in enumerate(examples)
    )
    assert (output / "miniature/reflection_model/model.safetensors").is_file()
    finished = rows(
        output / "Miniature-LRM/train_rl_math_cot_labeling_distill_use_asw_cuts_math_cot.json"
    )
    pairs = rows(output / "miniature/labeling/RPO.json")
    chosen = {row["responses"][0]["text"] for row in finished}
    original = {response["text"] for row in train for response in row["responses"]}
    assert 0 < len(pairs) <= 16
    assert {pair["chosen"][0]["content"] for pair in pairs} <= chosen
    assert {pair["rejected"][0]["content"] for pair in pairs} <= original
    for name in ("SFT", "RPO"):
        assert (output / f"miniature/{name}/train_results.json").is_file()


@pytest.mark.parametrize(
    ("name", "strategies"),
    [
        ("overthinking_detection", {"judge", "random_judge"}),
        (
            "reflection_model_eval",
            {s for n in ("weak", "normal", "strong") for s in (n, f"random_{n}")},
        ),
    ],
)
def test_reports_have_a_row_per_strategy(clone, printed, name, strategies):
    folder = clone / "output/miniature" / name
    report = json.loads((folder / "report.json").read_text())
    models = {"SFT", "RPO"} if name == "reflection_model_eval" else set()
    assert set(report["strategies"]) == STRATEGIES | strategies | models
    assert all(
        "tr" in figures for strategy, figures in report["strategies"].items() if strategy != "none"
    )
    assert (folder / "report.png").stat().st_size > 10_000
    for strategy in strategies:
        assert (
            len(rows(folder / f"{strategy}.json")) == 12
            and (folder / f"{strategy}.scores.json").is_file()
        )
        assert strategy in printed[name]
    assert ("detector" in report) == bool(models)


def test_complete_stages_are_skipped(clone, printed, fast_python):
    before = {
        path: path.stat().st_mtime_ns for path in (clone / "output").rglob("*_math_cot*.json")
    }
    again = launch(clone, fast_python, "reflection_model_train")
    assert again.count("skipped") == 7
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.faults
def test_killed_engines_yield_the_same_file(clone, fast_python):
    """SIGKILL half-way, and the same command again: byte for byte the file of a run that was
    left alone."""
    command = [
        *("-m", "generation.generate", "--config", "recipes/generation/miniature.yaml"),
        *("--qaf", "dataset/miniature/validation.json", "--qaf_limit", "12"),
        *("--n_generate_sample", "2", "--model_dir", "model/Miniature-LRM", "--max_num_seqs", "4"),
    ]
    run = {"cwd": clone, "env": environment(clone, fast_python), "stderr": subprocess.DEVNULL}
    subprocess.run([fast_python, *command, "--output_dir", "whole"], check=True, **run)
    process = subprocess.Popen([fast_python, *command, "--output_dir", "killed"], **run)
    part = clone / "killed/Miniature-LRM/validation_math_cot.part.jsonl"
    deadline = time.monotonic() + 400
    while (not part.exists() or part.read_bytes().count(b"\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 3 <= part.read_bytes().count(b"\n") < 12
    subprocess.run([fast_python, *command, "--output_dir", "killed"], check=True, **run)
    whole = (clone / "whole/Miniature-LRM/validation_math_cot.json").read_bytes()
    assert (clone / "killed/Miniature-LRM/validation_math_cot.json").read_bytes() == whole
