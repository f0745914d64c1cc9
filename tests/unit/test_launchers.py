"""`scripts/common.sh`: what it tells servers and trainer on machines that this one is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACED = 'place; batch_args; role_args policy; echo "$TRAIN_GPUS|$NUM_PROCESSES|${BATCH_ARGS[*]}|${ROLE_ARGS[*]}"'


@pytest.fixture
def shell(tmp_path):
    """Function that sources common.sh on a machine with so many GPUs, runs a line, and returns status and output."""

    def run(line: str, gpus: int, **variables: str) -> tuple[int, str]:
        smi = tmp_path / "nvidia-smi"
        smi.write_text("#!/bin/sh\n" + "echo GPU\n" * gpus)
        smi.chmod(0o755)
        command = f"source {ROOT}/scripts/common.sh; PATH={tmp_path}:$PATH; set_recipe ReflectRL; {line}"
        environment = {"PATH": os.environ["PATH"], "VENV": sys.prefix, **variables}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).strip()

    return run


@pytest.mark.parametrize(
    ("gpus", "variables", "train", "processes", "batch", "server"),
    [
        (3, {}, "0,1", 2, "", "--gpu 2 --gpu_memory_utilization 0.45"),
        (3, {"REFLECTION_GPU": "1"}, "0", 1, "--gradient_accumulation_steps 32", "--gpu 2 --gpu_memory_utilization 0.85"),
        (1, {"SERVER_CONTEXT": "10240"}, "0", 1, "--gradient_accumulation_steps 32", "0.25 --max_restarts 3 --max_model_len 10240"),
        (8, {"CUDA_VISIBLE_DEVICES": "4,6,7"}, "4,6", 2, "", "--gpu 7 --gpu_memory_utilization 0.45"),
        (8, {"CUDA_VISIBLE_DEVICES": "5"}, "5", 1, "--gradient_accumulation_steps 32", "--gpu 5"),
        (0, {"RECIPE_SET": "miniature"}, "", 1, "", "--device cpu"),
        (0, {"RECIPE_SET": "miniature", "NUM_PROCESSES": "2"}, "", 2, "--per_device_train_batch_size 24", "--device cpu"),
        (0, {"RECIPE_SET": "SmolLM2-135M-Instruct", "CONFIG_SUFFIX": "ReflectRL_smoke"}, "", 1, "", "--device cpu"),
    ],
)  # fmt: skip
def test_a_step_keeps_its_prompts_on_every_machine(shell, gpus, variables, train, processes, batch, server):
    status, output = shell(PLACED, gpus, **variables)
    assert status == 0, output
    found_train, found_processes, found_batch, role = output.split("|")
    assert (found_train, found_processes, found_batch) == (train, str(processes), batch)
    assert server in role and role.endswith("--role policy")


@pytest.mark.parametrize("variables", [{"NUM_GPUS": "1"}, {"REFLECTION_GPU": "1"}])
def test_more_processes_than_gpus_are_refused(shell, variables):
    status, output = shell(PLACED, 3, NUM_PROCESSES="2", **variables)
    assert status == 1 and "NUM_PROCESSES is 2, but the GPUs that train are 0" in output


def test_processes_that_do_not_divide_the_batch_are_refused(shell):
    status, output = shell(PLACED, 0, RECIPE_SET="miniature", NUM_PROCESSES="5")
    assert status == 1 and "NUM_PROCESSES is 5, which does not divide per_device_train_batch_size" in output


def test_the_reflection_model_may_have_a_gpu_of_its_own(shell):
    line = 'place; role_args reflection; echo "${ROLE_ARGS[*]} ${LABEL_ARGS[*]}"'
    assert shell(line, 3, REFLECTION_GPU="1")[1].endswith("--role reflection --gpu 1 --label_wave 1")
    assert shell(line, 3)[1].endswith("--role reflection --gpu 2")
    status, output = shell(line, 3, REFLECTION_GPU="0")
    assert status == 1 and "REFLECTION_GPU is 0; it must be 1 or 2" in output


def test_servers_serve_the_models_that_the_trainer_is_told(shell):
    """The launchers' options go to the trainer; what they say of models goes to the servers too."""
    stubs = "start_servers() { for role; do role_args $role; echo ${ROLE_ARGS[*]}; done; }; python() { :; }; "
    options = "--reflection_model=other/judge --max_steps 2 --model_name_or_path some/model"
    status, output = shell(f'{stubs} launch ReflectRL "policy reflection" {options}', 0, RECIPE_SET="miniature")
    assert status == 0, output
    policy, reflection = (line for line in output.splitlines() if line.startswith("--device cpu"))
    assert policy.endswith("--role policy --model some/model")
    assert reflection.endswith("--role reflection --model other/judge")


def test_shell_scripts_have_no_known_mistakes():
    scripts = [*ROOT.glob("*.sh"), *(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) > 10
    command = [Path(sys.prefix, "bin", "shellcheck"), "--external-sources", "--source-path=SCRIPTDIR", *scripts]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
