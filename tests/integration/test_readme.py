"""The commands of README, pipeline and running, in their order in one clone, at small size: one
finds the other's files.

Every command of a block, and every row for a CPU, is run here or named with the test that runs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/pipeline.md", "docs/running.md")
COPIED = (
    "setup.py",
    "src",
    "scripts",
    "recipes",
    "dataset/miniature",
    "model/Miniature-LRM",
    "model/Miniature-Instruct",
)
ELSEWHERE = {
    "git clone": "the clone is a fixture",
    "source .venv": "the environment of the tests is active",
    "scripts/run_tests.sh": "this suite",
    "scripts/reflection_model_train.sh": "test_offline_run.py",
    "scripts/overthinking_detection.sh": "test_offline_run.py",
    "scripts/sft_train.sh": "test_offline_run.py",
    "scripts/rpo_train.sh": "test_offline_run.py",
    "scripts/reflection_model_eval.sh": "test_offline_run.py",
    "scripts/study.sh": "test_study_run.py",
    "scripts/math_eval.sh": "test_math_eval.py",
    "scripts/smoke_real.sh": "a model from a hub",
    "scripts/real.sh": "a model from a hub",
}
CHANGES = {
    "max_steps": 1,
    "prompts_per_step": 2,
    "rows_per_forward": 4,
    "eval_dataset_name": None,
    "save_steps": 1,
    "warmup_steps": 0,
    "always_cut": True,  # the untrained reflection model sees no results
    "max_completion_length": 256,
    "torch_threads": 1,
}
FAST_SIZES = "--max_steps 1 --prompts_per_step 2"
SHIPPED = "model/Miniature-Reflection"  # this session's reflection server has another model


def units() -> list[str]:
    """Blocks of commands, and the CPU's rows of the tables, in the pages' order."""
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    blocks = [(m.start(), m[1]) for m in re.finditer(r"```bash\n(.*?)```", text, re.DOTALL)]
    rows = [(m.start(), m[1]) for m in re.finditer(r"^\| CPU[^|]*\| `([^`]+)`", text, re.MULTILINE)]
    return [commands for _, commands in sorted(blocks + rows)]


def to_run(commands: str) -> str:
    """Those of a unit that are not run elsewhere; the fast quickstart's sizes are smaller."""
    lines = [
        line for line in commands.splitlines() if not any(script in line for script in ELSEWHERE)
    ]
    return "".join(f"{line}\n" for line in lines).replace(" --fast ", f" --fast {FAST_SIZES} ")


@pytest.fixture(scope="module")
def clone(policy_server, reflection_server, tmp_path_factory) -> Path:
    """What the commands need of a clone, its recipes smaller and for the servers of this
    session."""
    folder = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    served = {
        "model_name_or_path": policy_server.config.model,
        "policy_server": policy_server.base_url,
    }
    served |= {
        "reflection_model": reflection_server.config.model,
        "reflection_server": reflection_server.base_url,
    }
    for path in (folder / "recipes" / "miniature").glob("config_*.yaml"):
        recipe = yaml.safe_load(path.read_text())
        changes = (
            {**CHANGES, **served}
            if "policy_server" in recipe
            else {"max_steps": 2, "torch_threads": 1}
        )
        path.write_text(
            yaml.safe_dump(
                recipe
                | {key: value for key, value in changes.items() if key in recipe or key in CHANGES}
            )
        )
    quickstart = folder / "scripts" / "quickstart.sh"
    quickstart.write_text(quickstart.read_text().replace(SHIPPED, reflection_server.config.model))
    return folder


@pytest.fixture(scope="module")
def shell(clone, policy_server, reflection_server, fast_python):
    """Function that runs a script in the clone with its environment activated; its output, both
    streams."""
    venv = Path(fast_python).parents[1]
    environment = {
        **os.environ, "VENV": str(venv), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "NUM_GPUS": "0",
        "PYTHONPATH": str(clone / "src"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        "POLICY_SERVER": policy_server.base_url, "POLICY_MODEL": policy_server.config.model,
        "EVAL_SAMPLES": "1", "FAST_PYTHON_ANSWER": str(Path(__file__).with_name("readme_sizes.py")),
    }  # fmt: skip

    def run(script: str) -> str:
        script = script.replace(SHIPPED, reflection_server.config.model)
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    # What is installed is not installed again.
    digest = run("cat setup.py scripts/setup.sh | sha256sum").strip()
    (venv / "installed.txt").write_text(f"cpu {clone} {digest}\n")
    return run


def rollouts(run: Path, step: int = 0) -> list[dict]:
    return [
        json.loads(line)
        for line in (run / "rollouts" / f"step-{step}.jsonl").read_text().splitlines()
    ]


def is_trained(run: Path, num_rows: int) -> None:
    assert (run / "train_results.json").is_file() and (run / "adapter_model.safetensors").is_file()
    assert len(rollouts(run)) == num_rows


def check_quickstart(clone: Path, said: str) -> None:
    """It is there twice, and the second time there is nothing to do."""
    assert "is up to date (cpu)" in said and ("train took" in said or said.count("skipped") == 8)
    summaries = []
    for folder in ("quickstart_fast", "quickstart"):
        assert (clone / "output" / folder / "quickstart.png").is_file()
        summaries.append(json.loads((clone / "output" / folder / "summary.json").read_text()))
    assert all(summary.keys() == {"base", "trained", "seconds"} for summary in summaries)
    assert [len(summary["seconds"]) for summary in summaries] == (
        [4, 10] if "train took" in said else [4, 2]
    )
    is_trained(clone / "output/miniature/ReflectRL", 16)
    is_trained(clone / "output/quickstart_fast/ReflectRL", 16)


def check_evaluation(clone: Path, said: str) -> None:
    scores = json.loads(
        (clone / "output/Miniature-LRM/test_math_cot_ReflectRL.scores.json").read_text()
    )
    assert scores["num_responses"] == 40 and "TR" in said


# Part of a unit that is run, and what it has to leave behind.
CHECKS: dict[str, Callable[[Path, str], None]] = {
    "scripts/setup.sh": lambda _, said: said.index("is up to date (cpu)"),
    "scripts/quickstart.sh": check_quickstart,
    "--output_dir output/own_data": lambda clone, _: is_trained(clone / "output/own_data", 16),
    "scripts/grpo_len.sh": lambda clone, _: is_trained(clone / "output/miniature/GRPO_len", 8),
    "NUM_PROCESSES=2 bash scripts/reflect_rl.sh": lambda clone, _: is_trained(
        clone / "output/miniature/ReflectRL_x2", 16
    ),
    "--split math_cot": lambda _, said: said.index("train_rl_math_cot.json is complete"),
    "rea_rl.merge_lora": lambda _, said: said.index("reflection_model is complete"),
    "--reflection_quantile 0.2": lambda _, said: said.index("complete"),
    "--role policy": lambda _, said: said.index("complete"),
    "--save_suffix _ReflectRL": check_evaluation,
}


def test_every_command_is_known():
    unknown = []
    for commands in units():
        if script := to_run(commands).replace("export RECIPE_SET=miniature", "").strip():
            unknown += [script] * (sum(part in script for part in CHECKS) != 1)
    assert not unknown


def test_the_commands_do_what_they_say_one_after_the_other(clone, shell):
    done = []
    for commands in units():
        script = to_run(commands)
        for part in (part for part in CHECKS if part in script):
            CHECKS[part](clone, shell(script))
            done.append(part)
    assert set(done) == set(CHECKS)
    shell("python -m rea_rl.viewer output/miniature/ReflectRL")
    assert (clone / "output/miniature/ReflectRL/viewer.html").stat().st_size > 10_000
