"""Real commands two at a time, and a real server that somebody started without our options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rea_core.models import load_tokenizer
from rea_rl.rollout.server_check import check_adapters, check_sampled_logprobs
from rea_rl.vllm_server import ServerConfig, check_server, server_command, server_environment

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LRM = "model/Miniature-LRM"
PROBLEMS = 40
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
COMMANDS = {
    "generate": "generation.generate --config recipes/generation/miniature.yaml "
    f"--qaf {{0}}/test.json --n_generate_sample 2 --model_dir {LRM} --output_dir {{0}}/out "
    "--api --api_base {1} --api_model {2} --max_concurrent_requests 8",
    "math_verify_all": f"generation.math_verify_all {{0}}/scored.json --model_dir {LRM} "
    "--results {0}/log.json --num_workers 1",
    "sft": "rea_rl.sft --config recipes/miniature/config_reflection_model.yaml --max_steps 6 "
    "--dataset_name {0}/rows.json --output_dir {0}/sft --torch_threads 1",
    "grpo": "rea_rl.grpo --config recipes/miniature/config_GRPO.yaml --policy_server {1} "
    "--model_name_or_path {2} --output_dir {0}/grpo --max_steps 2 --prompts_per_step 2 "
    "--per_device_train_batch_size 8 --max_completion_length 128 --max_eval_problems 2 "
    "--torch_threads 1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    problems = json.loads((ROOT / "dataset/miniature/test.json").read_text())[:PROBLEMS]
    (folder / "test.json").write_text(json.dumps(problems))
    response = {"text": "</think>\\boxed{7}", "num_tokens": 9, "finish_reason": "stop"}
    scored = [{**row, "id": str(i), "responses": [response]} for i, row in enumerate(problems)]
    (folder / "scored.json").write_text(json.dumps(scored))
    rows = [{"prompt": f"{i}+1?", "completion": str(i + 1)} for i in range(16)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def begin(folder, fast_python, policy_server) -> Iterator[Callable[[str], subprocess.Popen]]:
    """Function that starts a command, as a user types it."""
    started = []

    def start(name: str) -> subprocess.Popen:
        line = COMMANDS[name].format(folder, policy_server.base_url, policy_server.config.model)
        process = subprocess.Popen(
            [fast_python, "-m", *line.split()],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_commands_at_once_one_works_and_nothing_is_lost(begin, folder, name):
    """The first of a pair is killed, and another pair is started at once: its lock is nobody's."""
    killed = begin(name)
    deadline = time.monotonic() + 60
    while not list(folder.rglob(".*.lock")) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    both = [begin(name) for _ in range(2)]
    told = [process.communicate(timeout=180)[1].splitlines() for process in both]
    codes = [process.returncode for process in both]
    # scoring so few rows may end before the other one begins
    assert sorted(codes) == [0, 1] or (name == "math_verify_all" and codes == [0, 0]), told
    for process, code, lines in zip(both, codes, told, strict=True):
        (other,) = {*both} - {process}
        if code:
            assert (
                code == 1 and lines[-1].startswith("error: ") and "in use by process" in lines[-1]
            )
            assert "Traceback" not in "\n".join(lines) and other.returncode == 0
    if name == "generate":
        rows = json.loads((folder / "out/Miniature-LRM/test_math_cot.json").read_text())
        assert len({row["id"] for row in rows}) == PROBLEMS
        assert all(len(row["responses"]) == 2 for row in rows)
    elif name == "math_verify_all":
        assert len((folder / "scored.verdicts.jsonl").read_text().splitlines()) == PROBLEMS
        assert (folder / "scored.scores.json").exists()
    else:
        assert (folder / name / "train_results.json").exists()
    assert not list(folder.rglob(".*.lock"))


# --- A server of somebody else --------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign_server(fast_python, free_port, tmp_path_factory) -> Iterator[str]:
    """Base URL of a vLLM that was started without our options for adapters and log-probs."""
    config = ServerConfig(LRM, free_port(), "policy", device="cpu")
    _, *command = server_command(config, "cpu")
    for option in ("--max-lora-rank", "--max-loras", "--logprobs-mode"):
        del command[(place := command.index(option)) : place + 2]
    command.remove("--enable-lora")
    environment = {**ENVIRONMENT, **server_environment(config, "cpu")}
    del environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]
    log = tmp_path_factory.mktemp("foreign") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [fast_python, *command], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
    try:
        check_server(config.base_url, LRM, timeout=180)
        yield config.base_url
    finally:
        process.terminate()
        process.wait(30)


def test_a_real_server_of_somebody_else_is_refused_before_the_policy_loads(
    foreign_server, policy_server, fast_python, tmp_path
):
    line = COMMANDS["grpo"].format(tmp_path, foreign_server, LRM)
    done = subprocess.run(
        [fast_python, "-m", *line.split()],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and with --enable-lora" in said
    tokenizer, sampling = load_tokenizer(str(ROOT / LRM), "model_dir"), {"top_k": 0, "min_p": None}
    args = SimpleNamespace(temperature=0.6, top_p=1.0, repetition_penalty=1.0, **sampling)
    with pytest.raises(ValueError, match="temperature 0.6.; start it with --logprobs-mode proc"):
        check_sampled_logprobs(foreign_server, LRM, tokenizer, args)
    # ours passes, but for a rank that it was not started with
    url, model = policy_server.base_url, policy_server.config.model
    check_sampled_logprobs(url, model, tokenizer, args)
    check_adapters(url, tmp_path, 16)
    with pytest.raises(ValueError, match="max_lora_rank 16.*; start it with --max-lora-rank 64"):
        check_adapters(url, tmp_path, 48)
    assert list(tmp_path.iterdir()) == [tmp_path / "grpo"] or not list(tmp_path.iterdir())
