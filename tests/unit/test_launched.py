"""`scripts/benchmark/launched.py`, with a launcher that only writes what a real one does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Takes steps of a twentieth of a second, behind those of an earlier launch; SIGTERM ends it with a
# checkpoint. A step's log has the clock of the step before.
LAUNCHER = """
import json, os, pathlib, signal, subprocess, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = pathlib.Path(flags["--output_dir"])
(out / "rollouts").mkdir(parents=True, exist_ok=True)
(out / "variables.json").write_text(json.dumps(dict(os.environ)))
sleep = ["sh", "-c", "read line", "rea_rl.vllm_server", "--role"]
servers = [
    subprocess.Popen([*sleep, role, "--port", port], stdin=subprocess.PIPE)
    for role, port in (("policy", "1"), ("policy", "2"), ("reflection", "3"))
]
print('plan: {"processes": 1}', "policy server: ready after 31 s", sep="\\n", flush=True)
first = next(out.glob("checkpoint-*/trainer_state.json"), None)
steps = json.loads(first.read_text())["log_history"][:-1] if first else []
seconds, given = [9.0, 2.0, 4.0, 6.0, 9.0], len(steps)
while len(steps) < int(flags["--max_steps"]) and not asked:
    time.sleep(0.05)
    step = {"loss": 0.1, "grad_norm": 0.5, "timing/sample": 1.0 + len(steps)}
    if len(steps) > given:
        step |= {"timing/step": seconds[(len(steps) - 1) % 5], "share/train": 0.25}
    steps.append(step)
    (out / "rollouts" / f"step-{len(steps) - 1}.jsonl").write_text("{}")
ends = [server.poll() for server in servers]
print("servers", ends, flush=True)
for server in servers:
    server.kill()
place = out / f"checkpoint-{len(steps)}" if asked else out
place.mkdir(exist_ok=True)
(place / "trainer_state.json").write_text(json.dumps({"log_history": [*steps, {"runtime": 3}]}))
sys.exit(143 if asked else 0)
"""


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """Function that runs the benchmark with options, and returns what it wrote."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmark")
    import launched

    scripts = tmp_path / "project" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "launcher.py").write_text(LAUNCHER)
    line = f'exec {sys.executable} -IS {scripts / "launcher.py"} "$@"\n'
    (scripts / "reflect_rl.sh").write_text(line)
    monkeypatch.setattr(launched, "ROOT", tmp_path / "project")
    monkeypatch.setattr(launched, "SECONDS_OF_A_LOOK", 0.02)

    def run(*options: str) -> list[dict]:
        out = tmp_path / "out"
        launched.main(["--recipe_set", "Any", "--out", str(out), *options])
        return json.loads((out / "launched.json").read_text())["plans"]

    return run


def test_each_plan_is_launched_with_its_variables_and_timed_without_first_and_last_step(
    launch, tmp_path, capsys
):
    plans = launch(
        "--plans", "2", '{"TRAIN_GPUS": "0,1"}', "--steps", "5", "--prompts_per_step", "4"
    )
    for plan in plans:
        assert (plan["status"], plan["ended"], plan["steps"]) == (0, "by itself", 5)
        assert plan["plan"] == {"processes": 1}
        # steps 2, 3 and 4 of 5
        assert plan["seconds_per_step"] == 4.0 and plan["steps_per_hour"] == 900
        assert plan["seconds_of_a_step"]["train"] == 1.0
        assert plan["timing"] == {"timing/sample": 3.0}
        assert plan["servers_ready_after"] == [{"role": "policy", "seconds": 31}]
        assert plan["loss"] == [0.1] * 5 and plan["grad_norm"] == [0.5] * 5
        assert plan["peak_gib"]["host"] > 0 < plan["seconds_to_first_step"]
    variables = [
        json.loads((tmp_path / "out" / f"plan-{i}" / "variables.json").read_text()) for i in (0, 1)
    ]
    names = ("RECIPE_SET", "NUM_GPUS", "TRAIN_GPUS", "SERVER_COMPILE")
    assert [[found.get(name) for name in names] for found in variables] == [
        ["Any", "2", None, "false"],
        ["Any", None, "0,1", "false"],
    ]
    assert "TRAIN_GPUS=0,1" in capsys.readouterr().out


def test_a_plan_over_its_time_ends_with_what_it_has_measured(launch):
    (plan,) = launch("--plans", "1", "--steps", "5000", "--time_limit", "2")
    assert (plan["status"], plan["ended"]) == (143, "stopped")
    assert plan["steps"] == len(plan["loss"])


def test_a_run_is_continued_with_another_plan(launch):
    first, second = launch("--plans", "2", "--steps", "50", "--then", "2", "1")
    assert (first["status"], second["status"]) == (143, 0)
    assert 2 <= first["steps"] < 50 and first["steps"] + second["steps"] == 50
    assert second["variables"]["NUM_GPUS"] == "1"


def test_the_last_policy_server_is_killed_for_good(launch, capsys):
    (plan,) = launch("--plans", "3", "--steps", "30", "--kill_server", "2")
    assert plan["killed"] == ["--role policy --port 2"]
    assert "servers [None, -9, None]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plans", "two"], "'two' is no plan: give a number of GPUs, or variables as JSON"),
        (["--plans", "[1]"], "'[1]' is no plan"),
        (
            ["--plans", "1", "--then", "x", "1"],
            "--then stops after step 'x'; give a number from 1 to 5",
        ),
        (["--plans", "1", "--then", "6", "1"], "--then stops after step '6'"),
        (["--plans", "1", "--steps", "2"], "--steps is 2; the first and the last are not timed"),
    ],
)
def test_wrong_options_are_refused(launch, capsys, options, words):
    with pytest.raises(SystemExit) as end:
        launch(*options)
    assert end.value.code == 2 and words in capsys.readouterr().err
