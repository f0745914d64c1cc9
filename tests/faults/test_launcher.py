"""`scripts/common.sh` with real servers and the real trainer: a server is restarted, and a
signal ends everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from faults_support import ENVIRONMENT, ROOT, alive, wait_for, write_recipe

pytestmark = [pytest.mark.faults, pytest.mark.slow]

LAUNCHER = """
source scripts/common.sh
launch ReflectRL "policy reflection" --output_dir "$1"
"""


@pytest.fixture
def launcher(free_port, tmp_path):
    """Function that starts the launcher in a session of its own, and finds its processes."""
    urls = [SimpleNamespace(url=f"http://127.0.0.1:{free_port()}/v1") for _ in range(2)]
    write_recipe(tmp_path / "config_ReflectRL.yaml", *urls, max_steps=1000, save_steps=1000)
    variables = {
        "RECIPE_SET": os.path.relpath(tmp_path, ROOT / "recipes"), "NUM_GPUS": "0",
        "NUM_PROCESSES": "1",
        "VENV": sys.prefix,
    }  # fmt: skip
    script, output, log = tmp_path / "launcher.sh", tmp_path / "run", tmp_path / "launcher.log"
    script.write_text(LAUNCHER.replace("scripts/common.sh", str(ROOT / "scripts" / "common.sh")))
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", str(script), str(output)],
            cwd=ROOT, env=ENVIRONMENT | variables, stdin=subprocess.DEVNULL, stdout=file,
            stderr=file,
            start_new_session=True,
        )  # fmt: skip
    yield SimpleNamespace(process=process, output=output, log=log)
    if process.poll() is None:
        process.terminate()
        process.wait(90)


def started(launcher):
    """Processes of the launcher, once a step is trained."""
    first = launcher.output / "rollouts" / "step-0.jsonl"
    wait_for(lambda: first.exists() or launcher.process.poll() is not None, 300)
    assert launcher.process.poll() is None, launcher.log.read_text()
    tree = {
        p: " ".join(p.cmdline())
        for p in psutil.Process(launcher.process.pid).children(recursive=True)
    }
    assert sum("rea_rl.vllm_server" in name for name in tree.values()) == 2
    assert sum("rea_rl.grpo" in name for name in tree.values()) == 1
    return tree


def check_end(launcher, number, send, took):
    tree = psutil.Process(launcher.process.pid).children(recursive=True)
    begin = time.monotonic()
    send(launcher.process.pid, number)
    assert launcher.process.wait(90) == 128 + number
    wait_for(lambda: not alive(tree), 30)
    took("until all had ended", time.monotonic() - begin)
    assert list(launcher.output.glob("checkpoint-*/trainer_state.json")), launcher.log.read_text()
    assert "error: SIGTERM; give the same command" in launcher.log.read_text()


def test_a_server_is_restarted_and_sigterm_leaves_no_process(launcher, took):
    policy = next(
        p
        for p, name in started(launcher).items()
        if "vllm.entrypoints" in name and "--enable-lora" in name
    )
    begin = time.monotonic()
    os.killpg(policy.pid, signal.SIGKILL)
    wait_for(
        lambda: "is back after" in launcher.log.read_text() or launcher.process.poll() is not None,
        200,
        0.5,
    )
    took("after the fault", time.monotonic() - begin)
    assert launcher.process.poll() is None, launcher.log.read_text()
    assert "restart 1 of at most 3" in launcher.log.read_text()
    check_end(launcher, signal.SIGTERM, os.kill, took)


def test_ctrl_c_leaves_no_process(launcher, took):
    started(launcher)
    check_end(launcher, signal.SIGINT, os.killpg, took)
