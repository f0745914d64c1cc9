"""Real servers under supervision, and the real trainer as a process: what the fault tests break."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import yaml

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "model" / "Miniature-LRM"
REFLECTION = ROOT / "model" / "Miniature-Instruct"
PATHS = 8  # sampled in a step: two prompts
CHANGES = {
    "prompts_per_step": PATHS // 4,
    "rows_per_forward": 4,
    "eval_strategy": "no",
    "eval_dataset_name": None,
    "save_steps": 1,
    "save_total_limit": 2,
    "warmup_steps": 0,
    "always_cut": True,  # the untrained reflection model sees no results
    "tokens_per_reflection_file": None,
    "tokens_per_reflection": 60.0,
    "max_completion_length": 384,
    "max_steps": 3,
    "torch_threads": 1,
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_for(what: Callable[[], object], seconds: float = 120.0, poll: float = 0.02) -> object:
    """The first value of `what` that is true."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(poll)
    return value


class Server:
    """`python -m rea_rl.vllm_server` in the background, its stderr in a file."""

    def __init__(self, role: str, model: Path, port: int, folder: Path, *flags: str):
        self.url, self.role, self.model = f"http://127.0.0.1:{port}/v1", role, model
        self.stderr = folder / f"{role}_{port}.stderr"
        given = [
            "--role",
            role,
            "--model",
            str(model),
            "--port",
            str(port),
            "--device",
            "cpu",
            "--log_dir",
            str(folder),
        ]
        with self.stderr.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rea_rl.vllm_server", *given, *flags],
                cwd=ROOT,
                env=ENVIRONMENT,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.stderr.read_text()

    def wait_ready(self, times: int = 1) -> None:
        """Until vLLM was ready so often."""
        wait_for(
            lambda: self.log.count("ready after") >= times or self.process.poll() is not None,
            240.0,
            0.2,
        )
        assert self.process.poll() is None, self.log

    @property
    def vllm(self) -> psutil.Process:
        """The process that answers requests."""
        (process,) = psutil.Process(self.process.pid).children()
        return process

    def signal(self, number: int) -> None:
        """Send a signal to vLLM with all of its processes, as an out-of-memory killer or a
        debugger would."""
        os.killpg(self.vllm.pid, number)

    def running(self) -> int:
        """Requests that vLLM is computing now."""
        try:
            text = httpx.get(
                self.url.removesuffix("/v1") + "/metrics", timeout=10.0, trust_env=False
            ).text
        except httpx.TransportError:  # it is being started again
            return 0
        return int(
            sum(
                float(value)
                for value in re.findall(r"^vllm:num_requests_running\S* (\S+)$", text, re.M)
            )
        )

    def stop(self) -> None:
        tree = (
            psutil.Process(self.process.pid).children(recursive=True)
            if self.process.poll() is None
            else []
        )
        self.process.terminate()
        self.process.wait(90)
        assert not alive(tree)


@dataclass
class Run:
    """One output folder, trained by one process after another."""

    recipe: Path
    output: Path
    rows_per_path: int
    python: str = sys.executable
    logs: list[Path] = field(default_factory=list)
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(
        self, *flags: str, program: tuple[str, ...] = ("-m", "rea_rl.grpo")
    ) -> subprocess.Popen:
        self.logs.append(self.output.with_name(f"{self.output.name}-{len(self.logs)}.log"))
        command = [
            self.python,
            *program,
            "--config",
            str(self.recipe),
            "--output_dir",
            str(self.output),
            *flags,
        ]
        with self.logs[-1].open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen, seconds: float = 300.0) -> int:
        return process.wait(seconds)

    @property
    def log(self) -> str:
        """Of the newest process."""
        return self.logs[-1].read_text()

    def steps(self) -> list[dict]:
        """Logged entries of the optimizer steps, of a complete run."""
        state = json.loads((self.output / "trainer_state.json").read_text())
        return [entry for entry in state["log_history"] if "loss" in entry]

    def records(self, step: int) -> list[dict]:
        path = self.output / "rollouts" / f"step-{step}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def check_complete(self, steps: int) -> None:
        """All steps were trained, every rollout is on disk once, and nothing half-written is
        left."""
        assert [entry["step"] for entry in self.steps()] == list(range(1, steps + 1)), self.log
        names = {path.name for path in (self.output / "rollouts").iterdir()}
        assert names == {f"step-{step}.jsonl" for step in range(steps)}
        seen = []
        for step in range(steps):
            rows = self.records(step)
            assert len(rows) == self.rows_per_path * PATHS and {row["step"] for row in rows} == {
                step
            }
            assert {row["policy_version"].split("-")[1] for row in rows} == {str(step)}
            assert all(
                value is not None
                for row in rows[:: self.rows_per_path]
                for value in row["logprobs"]
            )
            problems = [row["problem_id"] for row in rows]
            assert [problems.count(problem) for problem in set(problems)] == [
                4 * self.rows_per_path
            ] * 2
            seen += sorted(set(problems))
        assert len(seen) == len(set(seen)) == 2 * steps  # no batch twice
        assert not list((self.output / "adapters").glob(".unfinished-*"))


def write_recipe(path: Path, policy: Server, reflection: Server | None, **changes: object) -> Path:
    """The miniature's own recipe, smaller; without a reflection server plain GRPO."""
    recipe = (
        yaml.safe_load((ROOT / "recipes" / "miniature" / "config_ReflectRL.yaml").read_text())
        | CHANGES
    )
    recipe |= {"model_name_or_path": str(POLICY), "policy_server": policy.url}
    recipe |= {"revision": False, "reflection_model": None}
    if reflection is not None:
        recipe |= {
            "revision": True,
            "reflection_model": str(REFLECTION),
            "reflection_server": reflection.url,
        }
    recipe["dataset_name"] = str(ROOT / recipe["dataset_name"])
    path.write_text(yaml.safe_dump(recipe | changes))
    return path
