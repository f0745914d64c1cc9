"""Steps an hour of a launcher under several plans of GPUs, one after the other.

    # 7B dimensions, random weights: one GPU, then two
    python scripts/benchmark/launched.py --preset 7b --plans 1 2 --max_completion_length 1024
    # a recipe set with its own models, data and verifier
    python scripts/benchmark/launched.py --recipe_set Qwen2.5-Coder-0.5B-Instruct --plans 1 2
    # a plan may be any variables of scripts/common.sh, as JSON
    python scripts/benchmark/launched.py --preset 7b --plans 4 \
        '{"TRAIN_GPUS": "0", "POLICY_GPUS": "1,2", "REFLECTION_GPUS": "3"}'
    # the second policy server is killed for good after step 3
    python scripts/benchmark/launched.py --preset 7b --kill_server 3 --plans \
        '{"TRAIN_GPUS": "0", "POLICY_GPUS": "1,2", "REFLECTION_GPUS": "3"}'
    # stop after step 4, and continue the run with other GPUs
    python scripts/benchmark/launched.py --preset 7b --plans 4 --then 4 '{"TRAIN_GPUS": "0"}'
    python scripts/benchmark/launched.py --preset miniature --plans 0             # a CPU

Options that this program does not know are the training's. With a preset the verifier calls every
other response right, since no response of random weights is; weights are made once. Both roles
serve the same random model. Each plan runs `scripts/reflect_rl.sh` for --steps steps, or until
--time_limit: then it finishes its step. Results are written after each plan.

Steps are timed from the end of the first to the end of the last but one, as in end_to_end.py.
Servers are not compiled unless SERVER_COMPILE=true.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import psutil
import yaml
from serving import MINIATURE, PRESETS, ROOT, print_table, versions
from two_steps import VERIFIER

from rea_core.row_files import write_json
from rea_rl.run.card import code_version

SETS = {
    "7b": "DeepSeek-R1-Distill-Qwen-7B",
    "1.5b": "DeepSeek-R1-Distill-Qwen-1.5B",
    "miniature": "miniature",
}
STOP_SECONDS = 300  # that a launcher has to end: a step, a checkpoint, its servers
SECONDS_OF_A_LOOK = 2.0


# --- What is run ----------------------------------------------------------------------------------


def plan_variables(text: str) -> dict[str, str]:
    """Variables of a plan: a number of GPUs, or a JSON object. Raises ValueError for others."""
    if text.isdigit():
        return {"NUM_GPUS": text}
    try:
        plan = json.loads(text)
    except json.JSONDecodeError:
        plan = None
    if not isinstance(plan, dict) or not plan:
        raise ValueError(f"{text!r} is no plan: give a number of GPUs, or variables as JSON")
    return {key: str(value) for key, value in plan.items()}


def random_model(preset: str, folder: Path) -> Path:
    """Folder of the preset's model, made once, by a process of its own: its memory is free
    afterwards."""
    if PRESETS[preset].dimensions is None:
        return MINIATURE
    model = folder / f"model-{preset}"
    if not (model / "tokenizer.json").exists():
        program = Path(__file__).with_name("serving.py")
        subprocess.run([sys.executable, program, preset, model], check=True)
    return model


def training_options(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Keys that differ from the recipe."""
    values: dict[str, Any] = {"max_steps": arguments.steps, "save_strategy": "no"}
    values["disable_tqdm"] = "true"
    if arguments.preset:
        (folder / "every_other.py").write_text(VERIFIER)
        model = random_model(arguments.preset, folder)
        reflection = ROOT / "model" / "Miniature-Reflection" if model == MINIATURE else model
        values |= {
            "model_name_or_path": model, "reflection_model": reflection,
            "dataset_name": ROOT / "dataset" / "miniature" / "train_rl.json",
            "verifier": f"{folder / 'every_other.py'}:every_other", "verifier_workers": 1,
            "always_cut": "true",  # random labels have no results
            "warmup_steps": 0,
        }  # fmt: skip
        recipe = ROOT / "recipes" / arguments.recipe_set / "config_ReflectRL.yaml"
        if "tokens_per_reflection_file" in yaml.safe_load(recipe.read_text()):
            file = folder / "tokens_per_reflection.json"
            write_json(file, {"tokens_per_reflection": 60.0, "word_bounded": True})
            values["tokens_per_reflection_file"] = file
    given = (("model_name_or_path", "model"), ("reflection_model", "reflection_model"))
    return values | {key: path for key, n in given if (path := getattr(arguments, n))}


# --- One launch -----------------------------------------------------------------------------------


class Watched:
    """A launcher under way: its output, with times, its steps, and its largest memory."""

    def __init__(self, command: list[str], variables: dict[str, str], output: Path, log: Path):
        environment = {"SERVER_COMPILE": "false", **os.environ, **variables}
        self.lines: list[str] = []
        self.peak: dict[str, float] = {}
        self.first_step: float | None = None
        self._rollouts = output / "rollouts"
        self._before = self.steps()
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(log,))
        self._reader.start()

    def _read(self, log: Path) -> None:
        with log.open("w") as file:
            for line in self.process.stdout or ():
                self.lines.append(line)
                file.write(line)
                file.flush()
                sys.stdout.write(line)
                sys.stdout.flush()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def steps(self) -> int:
        """Steps whose responses are written, over all launches of this run."""
        return len(list(self._rollouts.glob("step-*.jsonl")))

    def look(self) -> None:
        """Note memory and steps."""
        for name, gib in memory(self.process.pid).items():
            self.peak[name] = max(gib, self.peak.get(name, 0.0))
        if self.first_step is None and self.steps() > self._before:
            self.first_step = self.seconds

    def stop(self) -> None:
        """End it as a user would: the training finishes its step and writes a checkpoint."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(10)


def memory(pid: int) -> dict[str, float]:
    """GiB in use, of each GPU, and of all processes of a launcher."""
    found = {}
    for line in smi("index,memory.used"):
        index, mib = line.split(",")
        found[f"gpu {index.strip()}"] = float(mib) / 1024
    total = 0
    for process in processes(pid):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it has ended
    return {**found, "host": total / 2**30}


def smi(query: str) -> list[str]:
    """What nvidia-smi says about each GPU; nothing without one."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []


def processes(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_policy_server(pid: int) -> str | None:
    """Kill the launcher's last policy server, its supervisor first, so that it stays away; its
    command, or None without one."""
    servers = []
    for process in processes(pid):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "rea_rl.vllm_server" in words and "--wait" not in words:
            servers += [(process, words)] if words[words.index("--role") + 1] == "policy" else []
    if not servers:
        return None
    process, words = servers[-1]
    for each in processes(process.pid):
        each.kill()
    return " ".join(words[words.index("--role") :])


def launch(
    options: dict[str, Any],
    rest: list[str],
    variables: dict[str, str],
    output: Path,
    log: Path,
    until: Callable[[Watched], bool],
) -> dict[str, Any]:
    """Run the launcher until it ends, or until this says so; what was measured."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = ["bash", str(ROOT / "scripts" / "reflect_rl.sh"), *words, "--output_dir", str(output)]
    before = len(logged(output))
    watched = Watched([*command, *rest], variables, output, log)
    ended = "by itself"
    try:
        while watched.process.poll() is None:
            watched.look()
            if until(watched):
                ended = "stopped"
                break
            time.sleep(SECONDS_OF_A_LOOK)
    finally:
        watched.stop()
    text = "".join(watched.lines)
    plan = re.search(r"^plan: (.*)$", text, re.MULTILINE)
    return {
        "variables": variables,
        "plan": json.loads(plan[1]) if plan else None,
        "status": watched.process.returncode,
        "ended": ended,
        "seconds": watched.seconds,
        "seconds_to_first_step": watched.first_step,
        "servers_ready_after": [
            {"role": role, "seconds": int(seconds)}
            for role, seconds in re.findall(r"(\w+) server: ready after (\d+) s", text)
        ],
        "peak_gib": watched.peak,
        "log": log.name,
        **measured(logged(output)[before:]),
    }


# --- What was measured ----------------------------------------------------------------------------


def logged(output: Path) -> list[dict[str, float]]:
    """Log of each step that is saved: at the end, or in the newest checkpoint."""
    states = [*output.glob("checkpoint-*/trainer_state.json"), output / "trainer_state.json"]
    histories = [json.loads(path.read_text())["log_history"] for path in states if path.exists()]
    return [step for step in max(histories, key=len, default=[]) if "grad_norm" in step]


def measured(steps: list[dict[str, float]]) -> dict[str, Any]:
    """Steps an hour, and mean seconds of each part, without the first and the last step.

    A step's log has the clock (`timing/step` and the trainer's shares) of the step before.
    """
    clocks, middle = steps[2:], steps[1:-1]
    seconds = mean(clocks, "timing/step")
    trainer = ("train", "rollout_wait", "weight_sync", "evaluation")
    parts = {
        part: [s["timing/step"] * s.get(f"share/{part}", 0.0) for s in clocks] for part in trainer
    }
    keys = sorted({key for step in middle for key in step if key.startswith("timing/")})
    return {
        "steps": len(steps),
        "timed_steps": len(clocks),
        "steps_per_hour": 3600 / seconds if seconds else None,
        "seconds_per_step": seconds,
        "seconds_of_a_step": {part: sum(v) / len(v) for part, v in parts.items() if v},
        "timing": {key: mean(middle, key) for key in keys if key != "timing/step"},
        "loss": [step["loss"] for step in steps],
        "grad_norm": [step["grad_norm"] for step in steps],
        "logs": steps,
    }


def mean(steps: list[dict[str, float]], key: str) -> float | None:
    """Mean of a metric over the steps that have it."""
    values = [step[key] for step in steps if key in step]
    return sum(values) / len(values) if values else None


def table(results: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each plan."""
    columns = ("train", "rollout_wait", "weight_sync")
    stages = ("timing/rollout", "timing/sample", "timing/label", "timing/finish", "timing/verify")
    heads = [*columns, *(stage.removeprefix("timing/") for stage in stages)]
    rows = [["plan", "steps", "steps/h", "s/step", *heads, "ready s", "status"]]
    for result in results:
        numbers = [result["steps_per_hour"], result["seconds_per_step"]]
        numbers += [result["seconds_of_a_step"].get(column) for column in columns]
        numbers += [result["timing"].get(stage) for stage in stages]
        name = " ".join(f"{key}={value}" for key, value in result["variables"].items())
        cells = ["" if n is None else f"{n:.4g}" for n in numbers]
        ready = max((s["seconds"] for s in result["servers_ready_after"]), default="")
        rows.append([name, str(result["steps"]), *cells, str(ready), str(result["status"])])
    return rows


# --- Command --------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options, and those of the training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--preset", choices=SETS, help="random weights (the miniature: its own)")
    parser.add_argument("--recipe_set", help="folder of recipes/ (default: the preset's)")
    parser.add_argument("--model", help="folder of the policy (default: preset's or recipe's)")
    parser.add_argument("--reflection_model", help="its folder (default: likewise)")
    parser.add_argument("--plans", nargs="+", required=True, help="numbers of GPUs, or JSON")
    parser.add_argument("--steps", type=int, default=6, help="of each plan, at least 3")
    parser.add_argument("--time_limit", type=float, default=3600, help="seconds of each plan")
    parser.add_argument("--kill_server", type=int, help="kill a policy server after this step")
    parser.add_argument(
        "--then", nargs=2, metavar=("STEP", "PLAN"),
        help="stop each plan after this step, and continue it with another plan",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="default: output/launched/RECIPE_SET")
    parser.add_argument("--json", help="place of the results (default: OUT/launched.json)")
    arguments, rest = parser.parse_known_args(argv)
    arguments.recipe_set = arguments.recipe_set or SETS.get(arguments.preset or "")
    if not arguments.recipe_set:
        parser.error("give --preset or --recipe_set")
    if arguments.steps < 3:
        parser.error(f"--steps is {arguments.steps}; the first and the last are not timed")
    try:
        arguments.plans = [plan_variables(text) for text in arguments.plans]
        if arguments.then:
            step, plan = arguments.then
            if not step.isdigit() or not 0 < int(step) < arguments.steps:
                raise ValueError(
                    f"--then stops after step {step!r}; give a number from 1 to "
                    f"{arguments.steps - 1}"
                )
            arguments.then = int(step), plan_variables(plan)
    except ValueError as error:
        parser.error(str(error))
    return arguments, rest


def stopper(arguments: argparse.Namespace, killed: list[str], last: int | None = None) -> Any:
    """Function that says when a launch is to end, and kills a server when it is time."""

    def until(watched: Watched) -> bool:
        steps = watched.steps()
        if arguments.kill_server and not killed and steps >= arguments.kill_server:
            killed.append(kill_policy_server(watched.process.pid) or "none was found")
        too_long = watched.seconds > arguments.time_limit
        return too_long or (last is not None and steps >= last)

    return until


def main(argv: list[str] | None = None) -> None:
    """Run the plans, print a row for each, and write the results after each."""
    arguments, rest = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = arguments.recipe_set
    folder = (arguments.out or ROOT / "output" / "launched" / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    options = training_options(arguments, folder)
    about = {
        "machine": {"gpus": smi("name,memory.total"), "cpus": os.cpu_count(), **versions()},
        "commit": code_version().get("commit"),
        "command": " ".join(["python", *sys.argv]),
        "recipe_set": name,
        "preset": arguments.preset,
        "seconds_of_preparation": time.monotonic() - begin,
    }
    results: list[dict[str, Any]] = []
    for number, plan in enumerate(arguments.plans):
        output = folder / f"plan-{number}"
        shutil.rmtree(output, ignore_errors=True)
        launches = [(plan, arguments.then[0] if arguments.then else None)]
        launches += [(arguments.then[1], None)] if arguments.then else []
        for variables, last in launches:
            killed: list[str] = []
            variables = {"RECIPE_SET": name, **variables}
            until = stopper(arguments, killed, last)
            log = folder / f"launch-{len(results)}.log"
            result = launch(options, rest, variables, output, log, until)
            results.append({**result, "killed": killed})
            path = Path(arguments.json or folder / "launched.json")
            write_json(path, {**about, "plans": results})
            print_table(table(results))


if __name__ == "__main__":
    main()
