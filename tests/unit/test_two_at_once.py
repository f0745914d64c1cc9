"""Scripts that are started twice in one checkout, and scripts whose terminal is closed. Their
programs are stand-ins."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rea_core.ownership import own_port

ROOT = Path(__file__).parents[2]
# Plans are real, checks pass, what works for long says so and stays.
PYTHON = """#!/usr/bin/env bash
case "$REAL_CHECKS $*" in
    yes*vllm_server*--dry_run*) exec {python} "$@" ;;
esac
case "$*" in
    -\\ * | -c\\ * | *rea_rl.run.placement*) exec {python} "$@" ;;
    *--dry_run* | *--wait* | *benchmarks*) exit 0 ;;
esac
echo "$$ $*" >>"$SAID"
exec sleep 300
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """This checkout without outputs, and an environment whose Python is a stand-in."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("scripts", "recipes", "model", "dataset", "setup.py"):
        (folder / name).symlink_to(ROOT / name)
    program(tmp_path / "venv/bin/python", PYTHON.format(python=sys.executable))
    sums = 'echo "cpu $PWD $(cat setup.py scripts/setup.sh | sha256sum)"'
    subprocess.run(
        ["bash", "-c", f"cd {folder}; {sums} >{tmp_path}/venv/installed.txt"], check=True
    )
    return folder


@pytest.fixture
def begun(checkout, tmp_path) -> Iterator:
    """Function that starts a script, and returns it once a program of some name works."""
    started: list[subprocess.Popen] = []
    working: list[psutil.Process] = []
    said, output = tmp_path / "said", tmp_path / "output.log"

    def start(line: str, works: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
        process = subprocess.Popen(
            ["bash", *line.format(checkout).split()],
            env={
                **{"PATH": os.environ["PATH"], "VENV": str(tmp_path / "venv"), "SAID": str(said)},
                **{"NUM_GPUS": "0", "RECIPE_SET": "miniature", "CUDA_VISIBLE_DEVICES": ""},
                "PYTHONPATH": str(ROOT / "src"),
            },
            # not a pipe, which ends only with the last program that holds it
            stdout=output.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        deadline = time.monotonic() + 60
        while not (said.exists() and works in said.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, output.read_text()
            time.sleep(0.05)
        programs = [psutil.Process(int(told.split()[0])) for told in said.open()]
        working.extend(programs)
        return process, programs

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for program in working:
        with contextlib.suppress(psutil.NoSuchProcess):
            program.kill()


SCRIPTS = {
    "{0}/scripts/quickstart.sh": "generation.generate",
    "{0}/scripts/quickstart.sh --fast": "rea_rl.grpo",
    "{0}/scripts/grpo.sh": "rea_rl.grpo",
    "{0}/scripts/reflect_rl.sh": "rea_rl.grpo",
    "{0}/scripts/study.sh miniature": "generation.generate",
    "{0}/scripts/real.sh": "generation.word_problems",
    "{0}/scripts/math_eval.sh cpu MINIATURE_BASE 0": "generation.generate",
}


@pytest.mark.parametrize("line", SCRIPTS)
def test_a_closed_terminal_ends_all_that_a_script_started(begun, line, tmp_path):
    process, programs = begun(line, SCRIPTS[line])
    if SCRIPTS[line] == "rea_rl.grpo":
        assert any("vllm_server" in " ".join(p.cmdline()) for p in programs) or len(programs) > 1
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 129, (tmp_path / "output.log").read_text()
    assert not [p for p in programs if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_second_of_two_launchers_is_told_who_serves_on_its_port(checkout, tmp_path, free_port):
    """What the first one's server holds is held by this test."""
    port = free_port()
    environment = {
        **{"PATH": os.environ["PATH"], "VENV": str(tmp_path / "venv"), "SAID": f"{tmp_path}/said"},
        **{"NUM_GPUS": "0", "RECIPE_SET": "miniature", "CUDA_VISIBLE_DEVICES": ""},
        **{"PYTHONPATH": str(ROOT / "src"), "SERVER_PORT": str(port), "REAL_CHECKS": "yes"},
    }
    with own_port(port):
        done = subprocess.run(
            ["bash", f"{checkout}/scripts/grpo.sh"],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1 and not (tmp_path / "said").exists()  # nothing was started
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"error: port {port} is in use by process {os.getpid()} since ")


def test_of_two_setups_the_second_waits(tmp_path):
    script = (ROOT / "scripts/setup.sh").read_text()
    begin = script.index("# wait_turn"), script.index('main "$@"')
    turns = script[begin[0] : begin[1]]
    for real, pretended in (
        ('"install_$mode"', f"sleep 1; echo $$ >>{tmp_path}/installed"),
        ('stage "checking" final_check "$mode"', ":"),
        ("grep '^setup: torch' \"$LOG\"", ":"),
        ('"$VENV/bin/pip" --version >/dev/null 2>&1 || ', ""),
    ):
        assert turns.count(real) == 1, real
        turns = turns.replace(real, pretended)
    begun = "stage() { mkdir -p v; }; find_python() { echo " + sys.executable + "; }; LOG=log\n"
    begun += "check_machine() { :; }; VENV=v; die() { exit 1; }; visible_gpus() { :; }\n"
    (tmp_path / "setup.py").touch()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/setup.sh").touch()
    command = ["bash", "-euo", "pipefail", "-c", f"{begun}{turns}main cpu"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=30)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert len((tmp_path / "installed").read_text().splitlines()) == 1
    (second,) = [text for text in told if "waiting for another setup" in text]
    assert "v is up to date (cpu)" in second
