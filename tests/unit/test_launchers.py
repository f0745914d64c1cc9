"""`scripts/common.sh`: what it tells servers and trainer on machines that this one is not, and
how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from gpus import pretend_gpus

ROOT = Path(__file__).parents[2]
PLACED = (
    'place "policy reflection"; echo "$TRAIN_GPUS|$NUM_PROCESSES|${PLANNED[*]}|${PLAN_ARGS[*]}" '
    "| tail -1"
)


@pytest.fixture
def shell(tmp_path):
    """Function that sources common.sh on a machine with so many GPUs, runs a line, and returns
    status and output."""

    def run(line: str, gpus: int | str, **variables: str) -> tuple[int, str]:
        pretend_gpus(tmp_path, gpus)
        command = (
            f"source {ROOT}/scripts/common.sh; PATH={tmp_path}:$PATH; set_recipe ReflectRL; {line}"
        )
        environment = {"PATH": os.environ["PATH"], "VENV": sys.prefix, **variables}
        environment["PYTHONPATH"] = str(ROOT / "src")
        done = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    return run


@pytest.mark.parametrize(
    ("gpus", "variables", "train", "processes", "servers"),
    [
        (3, {}, "0,1", 2, "policy 12345 2 0.45 - 0 reflection 12346 2 0.45 - 1"),
        (3, {"REFLECTION_GPU": "1"}, "0", 1, "policy 12345 2 0.85 - 0 reflection 12346 1 0.85 - 0"),
        (1, {}, "0", 1, "policy 12345 0 0.25 - 0 reflection 12346 0 0.25 - 1"),
        (8, {"CUDA_VISIBLE_DEVICES": "4,6,7"}, "4,6", 2,
         "policy 12345 7 0.45 - 0 reflection 12346 7 0.45 - 1"),
        (8, {"CUDA_VISIBLE_DEVICES": "5", "SERVER_MEMORY": "0.3"}, "5", 1,
         "policy 12345 5 0.3 - 0 reflection 12346 5 0.3 - 1"),
        (8, {"POLICY_GPUS": "4,5,6,7", "POLICY_TP": "2"}, "0,1,2,3", 4,
         "policy 12345 4,5 0.85 12345 0 policy 12347 6,7 0.45 12347 0 reflection 12346 7 0.45 - 1"),
        (0, {"RECIPE_SET": "miniature"}, "", 1, "policy 12345 - - - 0 reflection 12346 - - - 0"),
        (0, {"RECIPE_SET": "miniature", "NUM_PROCESSES": "2", "SERVER_PORT": "500"}, "", 2,
         "policy 500 - - - 0 reflection 501 - - - 0"),
    ],
)  # fmt: skip
def test_servers_and_processes_of_every_machine(shell, gpus, variables, train, processes, servers):
    status, output = shell(PLACED, gpus, **variables)
    assert status == 0, output
    assert output.split("|")[:3] == [train, str(processes), servers]


MIG = """GPU 0: NVIDIA A100 (UUID: GPU-5f2e7c9a-0000)
  MIG 3g.20gb Device 0: (UUID: MIG-1d4b-aaaa)
  MIG 3g.20gb Device 1: (UUID: MIG-1d4b-bbbb)
GPU 1: NVIDIA A100 (UUID: GPU-8c31d0b4-0000)
"""


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (3, None, "0 1 2"),
        (0, None, ""),
        (MIG, None, "0 1"),
        (3, "", ""),
        (3, "-1", ""),
        (3, "NoDevFiles", ""),
        (0, "", ""),
        (0, "-1", ""),
        (3, "1,-1,2", "1"),
        (3, "2, 0", "2 0"),
        (3, "1,", "1"),
        (3, "GPU-1a,GPU-2", "GPU-1a GPU-2"),
        (MIG, "MIG-1d4b-bbbb", "MIG-1d4b-bbbb"),
        (MIG, "GPU-8c31d0b4", "GPU-8c31d0b4"),
        (3, " GPU-0 ,\t02 ", "GPU-0 2"),
        (12, "08,9,GPU-11", "8 9 GPU-11"),
    ],
)
def test_the_gpus_that_are_used_are_those_that_cuda_would_see(shell, gpus, visible, expected):
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert shell("visible_gpus | xargs", gpus, **variables) == (0, expected)
    if expected == "":
        assert shell(PLACED, gpus, **variables, RECIPE_SET="miniature")[1].startswith(
            "|1|policy 12345 - - - 0 "
        )


@pytest.mark.parametrize(
    ("gpus", "visible", "name"),
    [
        (3, "7", "7"),
        (3, "0,3", "3"),
        (0, "0", "0"),
        (3, "GPU-9a", "GPU-9a"),
        (MIG, "MIG-1d4b-cccc", "MIG-1d4b-cccc"),
        (3, "two", "two"),
        (3, "0;1", "0;1"),
        (3, "0 1", "0 1"),
        (3, "18446744073709551617", "18446744073709551617"),
    ],
)
def test_a_name_that_is_no_gpus_is_one_line(shell, gpus, visible, name):
    for line in (PLACED, "launch ReflectRL policy"):
        status, output = shell(line, gpus, CUDA_VISIBLE_DEVICES=visible)
        assert status == 1 and len(output.splitlines()) == 1, output
        assert f"CUDA_VISIBLE_DEVICES names {name}, but nvidia-smi lists no such GPU" in output
    assert (
        shell(PLACED, gpus, CUDA_VISIBLE_DEVICES=visible, NUM_GPUS="0", RECIPE_SET="miniature")[0]
        == 0
    )


@pytest.mark.parametrize("visible", ["0,0", "1, 2,1", "GPU-1a,GPU-1a", "0,00", "1,GPU-1a"])
def test_a_gpu_that_is_named_twice_is_one_line(shell, visible):
    status, output = shell(PLACED, 3, CUDA_VISIBLE_DEVICES=visible)
    assert status == 1 and len(output.splitlines()) == 1 and " twice, " in output


@pytest.mark.parametrize(("gpus", "visible"), [(12, "GPU-1"), (3, "GPU-"), (MIG, "MIG-1d4b")])
def test_a_name_of_several_gpus_is_one_line(shell, gpus, visible):
    status, output = shell(PLACED, gpus, CUDA_VISIBLE_DEVICES=visible)
    assert status == 1 and len(output.splitlines()) == 1
    assert f"names {visible}, with which several GPUs begin" in output


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_CONFIG": "zero9"}, "'zero9'; it must be one of cpu ddp zero2 zero3"),
        ({"MAIN_ADDRESS": "no.such.host.invalid", "NUM_MACHINES": "2", "VLLM_API_KEY": "k"},
         "MAIN_ADDRESS is 'no.such.host.invalid', which this host does not know"),
        ({"options": "--policy_server"}, "error: --policy_server has no address"),
        ({"options": "--prompts_per_step \N{SUPERSCRIPT TWO}"}, "must be a whole number greater"),
    ],
)  # fmt: skip
def test_what_no_launch_could_use_is_known_before_servers_start(shell, variables, words):
    options = variables.pop("options", "")
    stub = "start_servers() { echo started; }"
    status, output = shell(f"{stub}; launch GRPO policy {options}", 4, **variables)
    assert status == 1 and words in output.splitlines()[-1] and "started" not in output


@pytest.mark.parametrize(
    ("number", "words"), [("4", "NUM_GPUS is 4, but 3 are visible"), ("all", "NUM_GPUS is all")]
)
def test_a_number_of_gpus_that_cannot_be_is_one_line(shell, number, words):
    status, output = shell(PLACED, 3, NUM_GPUS=number)
    assert status == 1 and words in output and len(output.splitlines()) == 1


@pytest.mark.parametrize("gpu", ["7", "-1", "", "GPU-9"])
def test_a_server_on_a_gpu_that_is_not_there_is_one_line(shell, gpu):
    # the second is that of math_eval.sh
    for line in (f"serve policy 12345 '{gpu}'", f"check_gpu '{gpu}'"):
        status, output = shell(line, 3)
        assert status == 1 and len(output.splitlines()) == 1, output


@pytest.mark.parametrize(
    ("listed", "visible", "mode"),
    [(3, None, "gpu"), (3, "", "cpu"), (3, "-1", "cpu"), (3, "2", "gpu"), (0, None, "cpu")],
)
def test_the_install_is_for_the_gpus_that_are_visible(tmp_path, listed, visible, mode):
    pretend_gpus(tmp_path, listed)
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VENV": str(tmp_path / "venv"),
        "PYTHON": "none",
        **variables,
    }
    script = (
        (ROOT / "scripts" / "setup.sh")
        .read_text()
        .replace("find_python)", "echo $mode >&2; find_python)")
    )
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup.sh").write_text(script)
    for name in ("scripts/gpus.sh", "setup.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "setup.sh"], env=environment, capture_output=True, text=True
    )
    first, last = done.stderr.splitlines()
    assert first == mode and "no Python 3.11, 3.12 or 3.13 among: none" in last


@pytest.fixture
def own_recipes():
    """Name of a recipe set that nobody knows: the 7B's under another name."""
    with tempfile.TemporaryDirectory(dir=ROOT / "recipes", prefix="Own-8B-") as folder:
        shutil.copy(
            ROOT / "recipes" / "DeepSeek-R1-Distill-Qwen-7B" / "config_ReflectRL.yaml", folder
        )
        yield Path(folder).name


def test_a_step_of_recipes_of_another_name_has_their_prompts(shell, own_recipes):
    for gpus, expected in ((3, "0,1|2|"), (1, "0|1|"), (0, "|1|")):
        status, output = shell(PLACED, gpus, RECIPE_SET=own_recipes)
        assert status == 0 and output.startswith(expected), output


def test_the_batch_of_a_recipe_without_prompts_is_never_guessed(shell, own_recipes):
    recipe = ROOT / "recipes" / own_recipes / "config_ReflectRL.yaml"
    recipe.write_text(recipe.read_text().replace("prompts_per_step: 16\n", ""))
    for gpus in (3, 1, 0):
        status, output = shell(PLACED, gpus, RECIPE_SET=own_recipes)
        assert status == 1 and "has no prompts_per_step" in output and "NUM_PROCESSES" in output
        assert len(output.splitlines()) == 1
    assert shell(PLACED, 3, RECIPE_SET=own_recipes, NUM_PROCESSES="2")[1].startswith("0,1|2|")


def test_the_batch_of_every_recipe_set_of_the_project_is_known(shell):
    for folder in (ROOT / "recipes").iterdir():
        if list(folder.glob("config_GRPO*.yaml")):
            status, output = shell(PLACED, 0, RECIPE_SET=folder.name, CONFIG_SUFFIX="GRPO")
            assert status == 0, output


def test_adapters_are_trained_with_ddp_and_all_weights_with_zero2(shell, own_recipes):
    line = 'place "policy"; echo "$ACCELERATE_CONFIG"'
    assert shell(line, 3) == (0, "ddp")
    assert shell(line, 3, ACCELERATE_CONFIG="zero3") == (0, "zero3")
    assert shell(line, 0, RECIPE_SET="miniature") == (0, "cpu")
    recipe = ROOT / "recipes" / own_recipes / "config_ReflectRL.yaml"
    recipe.write_text(recipe.read_text().replace("use_peft: true", "use_peft: false"))
    assert shell(line, 3, RECIPE_SET=own_recipes) == (0, "zero2")


@pytest.mark.parametrize("variables", [{"NUM_GPUS": "1"}, {"REFLECTION_GPU": "1"}])
def test_more_processes_than_gpus_are_refused(shell, variables):
    status, output = shell(PLACED, 3, NUM_PROCESSES="2", **variables)
    assert status == 1 and "NUM_PROCESSES is 2, but the GPUs that train are 0" in output
    assert len(output.splitlines()) == 1


def test_processes_that_do_not_divide_a_step_are_refused(shell):
    status, output = shell(PLACED, 0, RECIPE_SET="miniature", NUM_PROCESSES="5")
    assert status == 1 and "5 processes are to train, which does not divide prompts_per" in output
    asked = PLACED.replace('reflection"', 'reflection" --prompts_per_step 10')
    assert shell(asked, 0, RECIPE_SET="miniature", NUM_PROCESSES="5")[0] == 0


def test_the_reflection_model_may_have_a_gpu_of_its_own(shell):
    assert shell(PLACED, 3, REFLECTION_GPU="1")[1].endswith("|--stage_batch_size 1")
    assert shell(PLACED, 3)[1].endswith("1|")
    status, output = shell(PLACED, 3, REFLECTION_GPU="0")
    assert status == 1 and "REFLECTION_GPU is 0; it must be 1 or 2" in output


def test_servers_serve_the_models_that_the_trainer_is_told(shell):
    """The launchers' options go to the trainer; what they say of models goes to the servers too."""
    stubs = (
        'start_servers() { for s in "${PLANNED[@]}"; do server_args "$s"; echo ${SERVER_ARGS[*]}; '
        "done; exit; }; training() { COMMAND=(true); }; "
    )
    options = "--reflection_model=other/judge --max_steps 2 --model_name_or_path some/model"
    status, output = shell(
        f'{stubs} launch ReflectRL "policy reflection" {options}', 0, RECIPE_SET="miniature"
    )
    assert status == 0, output
    policy, reflection = (line for line in output.splitlines() if line.startswith("--device cpu"))
    assert policy.endswith("--role policy --port 12345 --model some/model")
    assert reflection.endswith("--role reflection --port 12346 --model other/judge")


def test_servers_of_one_gpu_start_side_by_side_if_none_measures_its_memory(shell):
    stubs = (
        'place "policy reflection"; python() { [[ $* == *--dry_run* ]] || echo "start $*"; }; '
        'wait_ready() { wait "${SERVER_OF[$1]}"; echo ready; }; start_servers; exit'
    )
    status, output = shell(stubs, 1)
    assert status == 0, output
    assert [line.split()[0] for line in output.splitlines()] == ["start", "ready"] * 2
    settings = {"SERVER_CACHE_GIB": "5", "SERVER_COMPILE": "false"}
    status, output = shell(stubs.replace("start_servers", "start_servers | sort"), 1, **settings)
    *_, first, second = output.splitlines()
    assert first.startswith("start") and second.startswith("start")
    for line, role in ((first, "policy"), (second, "reflection")):
        assert f"--role {role}" in line and "--compile false --kv_cache_gib 5" in line
    together = shell(stubs.replace("wait ", "sleep 1; wait "), 1, **settings)[1].splitlines()
    assert [line.split()[0] for line in together] == ["start", "start", "ready", "ready"]


def test_servers_whose_addresses_are_given_are_not_started(shell):
    given = 'reflection" --policy_server http://far:1/v1 http://far:2/v1'
    status, output = shell(PLACED.replace('reflection"', given), 4)
    assert (status, output) == (0, "0,1|2|reflection 12346 2 0.85 - 0 reflection 12347 3 0.85 - 0|"
        "--reflection_server http://127.0.0.1:12346/v1 http://127.0.0.1:12347/v1 "
        "--stage_batch_size 1")  # fmt: skip


@pytest.mark.parametrize(
    "options",
    ["--model_name_or_path M", "--model-name-or-path M", "--model-name-or-path=M --seed 1",
     "--model_name_or_path L --model-name-or-path M"],
)  # fmt: skip
def test_an_option_is_read_in_both_spellings(shell, options):
    assert shell(f"option model_name_or_path {options}", 0) == (0, "M")


def test_several_machines_are_one_launch(shell):
    line = 'place policy; training rea_rl.grpo; echo "${COMMAND[*]} ${PLAN_ARGS[*]}"'
    machines = {"NUM_MACHINES": "2", "MACHINE_RANK": "1", "MAIN_ADDRESS": "node1"}
    status, output = shell(line, 4, **machines, SERVER_HOST="node2")
    assert status == 0, output
    assert output == (
        "python -m rea_rl.run.ranks --config_file recipes/accelerate_configs/ddp.yaml "
        "--num_processes 4 --num_machines 2 --machine_rank 1 --main_process_ip node1 "
        "--main_process_port 29500 -m rea_rl.grpo --policy_server http://node2:12345/v1 http://node2:12347/v1"
    )
    status, output = shell(line, 4, NUM_MACHINES="2")
    assert status == 1 and "give MAIN_ADDRESS" in output


@pytest.mark.parametrize(
    ("answer", "options", "status", "told"),
    [
        ("echo 'error: no such recipe key' >&2; exit 1", "", 1, "error: no such recipe key"),
        ("echo complete", "", 0, ""),
        (":", "", 0, "servers\ntrained"),
    ],
)
def test_what_is_wrong_or_complete_is_known_before_servers_are_started(
    shell, answer, options, status, told
):
    stubs = (
        "training() { COMMAND=(trainer); }; trainer() { if [[ $* == *--dry_run* ]]; then "
        f"{answer}; else echo trained; fi; }}; start_servers() {{ echo servers; }}"
    )
    found, output = shell(f"{stubs}; launch GRPO policy {options}", 0, RECIPE_SET="miniature")
    plan, _, rest = f"{output}\n".partition("}\n")
    assert found == status and rest.strip() == told and "plan: {" in plan


@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["--max_steps", "2", "--help"]])
def test_a_script_that_is_asked_for_help_says_its_head_and_starts_nothing(tmp_path, flags):
    """From any folder, and without a virtual environment."""
    sourced = {"common", "gpus", "help", "offline"}
    usages = {"setup"}  # it tells its usage, and is no part of what it installs
    scripts = [path for path in ROOT.glob("scripts/*.sh") if path.stem not in sourced | usages]
    assert len(scripts) > 15
    for script in scripts:
        done = subprocess.run(
            ["bash", str(script), *flags], cwd=tmp_path, env={"PATH": os.environ["PATH"]},
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        head = script.read_text().partition("\n# ")[2].partition("\n")[0]
        assert done.returncode == 0 and done.stdout.startswith(f"{head}\n"), script
        assert f"bash scripts/{script.name}" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    "name",
    ["overthinking_detection", "reflection_model_train", "reflection_model_eval", "real"],
)
def test_a_script_without_options_refuses_them(name):
    command = ["bash", str(ROOT / f"scripts/{name}.sh"), "--steps", "2"]
    environment = {**os.environ, "VENV": sys.prefix, "RECIPE_SET": "miniature"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == (
        f"{name}.sh: unknown arguments: --steps 2; it takes variables only, see bash "
        f"{ROOT}/scripts/{name}.sh --help\n"
    )


def test_shell_scripts_have_no_known_mistakes():
    scripts = [*ROOT.glob("*.sh"), *ROOT.glob("scripts/*.sh"), *ROOT.glob("recipes/*/*.sh")]
    scripts.append(ROOT / ".ci" / "run")
    assert len(scripts) > 10
    command = [
        Path(sys.prefix, "bin", "shellcheck"),
        "--external-sources",
        "--source-path=SCRIPTDIR",
        *scripts,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# A process that ends half a second after SIGTERM, and says so in a file.
SLOW_TO_END = """
import os, signal, sys, time
def end(*_):
    time.sleep(0.5)
    open(os.environ["SAID"], "a").write(sys.argv[1] + " ended ")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open(os.environ["SAID"], "a").write(sys.argv[1] + " began ")
time.sleep(60)
"""
FAKES = f"""
slow() {{ exec {sys.executable} -c '{SLOW_TO_END}' "$1"; }}
training() {{ COMMAND=(trainer); }}
trainer() {{ [[ "$*" == *--dry_run* ]] || slow trainer; }}
start_servers() {{ slow server & SERVERS+=($!); sleep 1; }}
"""
LAUNCHED = "launch ReflectRL policy"
ATTENDED = "stop_in_order; work() { (slow trainer); echo no; }; attend work"


@pytest.mark.parametrize(("line", "told"), [(LAUNCHED, "server trainer"), (ATTENDED, "trainer")])
@pytest.mark.parametrize(("sent", "status"), [("HUP", 129), ("TERM", 143), ("INT", 130)])
def test_a_signal_ends_the_training_before_the_servers_and_waits_for_both(
    tmp_path, line, told, sent, status
):
    said = tmp_path / "said"
    script = f"source {ROOT}/scripts/common.sh; set_recipe ReflectRL; {FAKES}\n{line}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        env={
            "PATH": os.environ["PATH"],
            "VENV": sys.prefix,
            "RECIPE_SET": "miniature",
            "NUM_GPUS": "0",
            "SAID": str(said),
            "PYTHONPATH": str(ROOT / "src"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 30
    while (
        not (said.exists() and "trainer began" in said.read_text()) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(getattr(signal, f"SIG{sent}"))
    output, _ = process.communicate(timeout=30)
    assert process.returncode == status and "no" not in output, output
    ends = ["trainer ended", *(["server ended"] if "server" in told else [])]
    began = " ".join(f"{name} began" for name in told.split())
    assert said.read_text().split() == f"{began} {' '.join(ends)}".split()


# --- Offline --------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path):
    """Function that runs a script of the offline programs with a Python that only says what it was
    asked; returns these lines."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    asked = tmp_path / "asked"
    python.write_text(f'#!/bin/bash\necho "on ${{CUDA_VISIBLE_DEVICES-all}}: $*" >>{asked}\n')
    python.chmod(0o755)

    def run(*command, gpus=3, **variables):
        asked.write_text("")
        pretend_gpus(tmp_path, gpus)
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv")}
        done = subprocess.run(
            ["bash", *command],
            cwd=ROOT,
            env=environment | {"EVAL_OUT": str(tmp_path / "eval")} | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = asked.read_text().splitlines()
        return [line.replace("-m ", "") for line in lines if " -m " in line], done.stdout

    return run


@pytest.mark.parametrize(
    ("gpus", "variables", "devices"),
    [
        (3, {}, "0,1,2"), (0, {}, ""), (3, {"CUDA_VISIBLE_DEVICES": ""}, ""),
        (8, {"CUDA_VISIBLE_DEVICES": "5,2"}, "5,2"),
    ],
)  # fmt: skip
def test_math_eval_takes_all_visible_gpus(offline, gpus, variables, devices):
    script = ROOT / "scripts" / "math_eval.sh"
    asked, _ = offline(script, "MINIATURE_BASE", "0", gpus=gpus, **variables)
    programs = [line.split()[2 if devices else 1 :][0] for line in asked]
    assert [line.partition(": ")[0] for line in asked] == [f"on {devices}"] * 4, programs
    asked, _ = offline(script, "1", "MINIATURE_BASE", "0", gpus=3)
    assert asked[1].startswith("on 1: generation.generate ") and "--shard" not in asked[1]


def test_math_eval_of_a_share_ends_before_the_scores(offline):
    script = ROOT / "scripts" / "math_eval.sh"
    asked, said = offline(script, "MINIATURE_BASE", "0", SHARD="2/4")
    assert asked[-1].endswith("--shard 2/4") and "share 2/4 is done" in said
    asked, _ = offline(script, "MINIATURE_BASE", "0", SHARD="3/4")
    assert [line.split()[2] for line in asked] == ["generation.generate"]  # problems are collected


@pytest.mark.parametrize("shard", ["5/4", "0/3", "2of4", "Join", "1/9999999999"])
def test_a_share_that_is_none_is_known_at_once(offline, shard):
    for script in (
        f"source scripts/offline.sh; echo {shard} goes on",
        "set -- MINIATURE_BASE 0; source scripts/math_eval.sh",
    ):
        with pytest.raises(AssertionError, match=f"SHARD is '{shard}'; write the number of this"):
            offline("-c", script, RECIPE_SET="miniature", SHARD=shard)


def test_a_share_of_an_offline_stage(offline, tmp_path):
    out = tmp_path / "rows.json"
    script = f"source scripts/offline.sh; answered {out} python -m answer; echo goes on"
    variables = {"RECIPE_SET": "miniature"}

    def run(**more):
        done = offline("-c", script.replace("goes on", "the next stage"), **variables | more)
        return [line.rpartition(": ")[2] for line in done[0]], done[1]

    assert run(SHARD="1/3")[0] == ["answer --shard 1/3"]
    assert "is the next to be shared" in run(SHARD="join")[1]
    out.with_name("rows.shard-1-of-3.json").touch()
    out.touch()
    assert run(SHARD="join") == ([], f"bash: skipped, {out} is there\nthe next stage\n")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NUM_MACHINES": "2"}, "NUM_MACHINES is 2; give MAIN_ADDRESS"),
        ({"NUM_MACHINES": "two"}, "NUM_MACHINES is 'two'; give the number of hosts"),
        ({"NUM_MACHINES": "0"}, "NUM_MACHINES is '0'; give the number of hosts"),
        ({"NUM_MACHINES": "2", "MAIN_ADDRESS": "h", "MACHINE_RANK": "2"}, "MACHINE_RANK is 2;"),
    ],
)
def test_hosts_that_cannot_be_are_one_line(shell, variables, words):
    for line in (PLACED, "launch ReflectRL 'policy reflection'"):
        status, output = shell(line, 3, **variables)
        assert status == 1 and words in output and len(output.splitlines()) == 1, output


# --- Study ----------------------------------------------------------------------------------------


def dry_study(tmp_path, gpus, variables, options):
    """The end of `study.sh --dry_run`, whose program only says what it was asked."""
    pretend_gpus(tmp_path, gpus)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        f'#!/bin/bash\n[[ $* != *"-m rea_rl.study"* ]] || exec echo asked "$*"\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path)}
    environment |= {"PYTHONPATH": str(ROOT / "src"), **variables}
    command = ["bash", ROOT / "scripts" / "study.sh", "miniature", *options, "--dry_run"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("gpus", "variables", "options", "planned", "study"),
    [
        (8, {"PAIRS": "3"}, [], [[4, 5, 6], [7], 4],
         "--train_gpus 0 1 2 3 --num_processes 1 --policy_server http://127.0.0.1:12345/v1 "
         "http://127.0.0.1:12347/v1 http://127.0.0.1:12348/v1"),
        (8, {}, [], [[4], [7], 4], "--num_processes 4"),
        (3, {}, ["--jobs", "2"], [[2], [2], 2], "--jobs 2 --train_gpus 0 1 --num_processes 1"),
        (0, {"PAIRS": "2"}, [], [[], [], 1],
         "--num_processes 1 --policy_server http://127.0.0.1:12345/v1 http://127.0.0.1:12347/v1 "
         "--reflection_server http://127.0.0.1:12346/v1 http://127.0.0.1:12348/v1"),
        (0, {}, ["--policy_server", "http://a/v1", "http://b/v1", "--reflection_server",
                 "http://c/v1"], [[], [], 1],
         "--policy_server http://a/v1 http://b/v1 --reflection_server http://c/v1 --num_proc"),
    ],
)  # fmt: skip
def test_a_study_has_pairs_of_servers(tmp_path, gpus, variables, options, planned, study):
    done = dry_study(tmp_path, gpus, variables, options)
    assert done.returncode == 0, done.stderr
    *_, plan, asked = done.stdout.splitlines()
    plan = json.loads(plan.removeprefix("plan: "))
    assert [plan["policy_gpus"], plan["reflection_gpus"], plan["processes"]] == planned
    assert study in asked.replace("--dry_run ", "") and "_server" not in asked.split(" -- ")[1]


def test_a_recipe_set_without_offline_settings_is_one_line(tmp_path):
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "rpo_train.sh"],
        env={"PATH": os.environ["PATH"], "VENV": sys.prefix, "RECIPE_SET": "SmolLM2-135M-Instruct"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "recipes/SmolLM2-135M-Instruct/offline.sh is missing" in done.stderr


@pytest.mark.parametrize(
    ("gpus", "variables", "words"),
    [
        (8, {"PAIRS": "9"}, "PAIRS is 9, but the plan has 3 policy servers"),
        (8, {"PAIRS": "3", "POLICY_TP": "2"}, "PAIRS is 3, but the plan has 1 policy servers"),
        (1, {"PAIRS": "2"}, "PAIRS is 2, but the plan has 1 policy servers"),
        (8, {"PAIRS": "none"}, "PAIRS is 'none'; give the number of pairs"),
    ],
)
def test_pairs_that_the_gpus_do_not_have_are_one_line(tmp_path, gpus, variables, words):
    done = dry_study(tmp_path, gpus, variables, [])
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
