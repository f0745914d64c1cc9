"""Two policy servers and two reflection servers, two training processes; one server dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from faults_support import ENVIRONMENT, ROOT, wait_for, write_recipe

pytestmark = pytest.mark.faults
TWO_RANKS = (
    *("-m", "accelerate.commands.launch", "--config_file"),
    *("recipes/accelerate_configs/cpu.yaml", "--num_processes", "2", "-m", "rea_rl.grpo"),
)
STEPS = 2


@pytest.fixture
def make_run(make_run, fast_python):
    """As of all faults, but for the start: processes are killed here as a whole."""

    def make(*servers, **changes):
        run = make_run(*servers, **changes)
        run.python = fast_python
        return run

    return make


@pytest.fixture
def both(policy_server, reflection_server, pair):
    """URLs of two policy servers and of two reflection servers; the second ones are started again
    when they are killed."""
    firsts = (policy_server, reflection_server)
    return [[first.base_url, second.url] for first, second in zip(firsts, pair, strict=True)]


@pytest.fixture
def run(make_run, pair, both):
    """A run on all four servers."""
    return make_run(*pair, policy_server=both[0], reflection_server=both[1], max_steps=STEPS)


def served(url):
    """Completions that a server has ended since it started."""
    text = httpx.get(f"{url.removesuffix('/v1')}/metrics", timeout=10.0, trust_env=False).text
    return sum(float(n) for n in re.findall(r"^vllm:request_success_total\S* (\S+)$", text, re.M))


def problems(run, step):
    return [row["problem_id"] for row in run.records(step)]


def test_four_servers_and_two_ranks_train_what_two_servers_and_one_rank_do(
    run, make_run, pair, both
):
    before = [[served(url) for url in urls] for urls in both]
    assert run.finish(run.start(program=TWO_RANKS)) == 0, run.log
    run.check_complete(STEPS)
    grown = [
        [served(url) - count for url, count in zip(urls, counts, strict=True)]
        for urls, counts in zip(both, before, strict=True)
    ]
    policies, reflections = grown
    assert policies[0] == policies[1] > 0, grown  # each has half of them
    assert min(reflections) > 0, grown  # replies that are left early do not count
    assert {entry["servers/alive"] for entry in run.steps()} == {4}

    one = make_run(*pair, max_steps=STEPS)
    one.output = one.output.with_name("one")
    assert one.finish(one.start()) == 0, one.log
    assert [problems(one, i) for i in range(STEPS)] == [problems(run, i) for i in range(STEPS)]
    cached = [[step["revision/cached_prompt"] for step in each.steps()] for each in (run, one)]
    assert min(cached[0]) > 0.5 * min(cached[1]) > 0, cached


@pytest.fixture
def hosts(pair, both, fast_python, free_port, tmp_path):
    """Function that trains with a launcher for each of two hosts, and returns their results; each
    names a policy and a reflection server of its own."""
    recipe = write_recipe(tmp_path / "config_ReflectRL.yaml", *pair, lr_scheduler_type="constant")
    policies, reflections = both

    def train(*folders, max_steps):
        variables = {
            "RECIPE_SET": os.path.relpath(recipe.parent, ROOT / "recipes"), "NUM_GPUS": "0",
            "VENV": str(Path(fast_python).parents[1]), "NUM_MACHINES": "2",
            "MAIN_ADDRESS": "127.0.0.1", "MAIN_PORT": str(free_port()),
        }  # fmt: skip
        launched = []
        for i, folder in enumerate(folders):
            command = ["bash", "scripts/reflect_rl.sh", "--output_dir", str(folder)]
            command += ["--policy_server", policies[i], "--max_steps", str(max_steps)]
            command += ["--reflection_server", reflections[i]]
            environment = ENVIRONMENT | variables | {"MACHINE_RANK": str(i)}
            launched.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )  # fmt: skip
            )
        outputs = [process.communicate(timeout=400)[0] for process in launched]
        return [process.returncode for process in launched], outputs

    return train


def test_two_hosts_train_and_resume(hosts, both, make_run, pair, tmp_path):
    before = [served(url) for url in both[0]]
    run = make_run(*pair)
    codes, outputs = hosts(run.output, run.output, max_steps=1)
    assert codes == [0, 0], outputs
    codes, outputs = hosts(run.output, run.output, max_steps=2)
    assert codes == [0, 0], outputs
    run.check_complete(2)
    assert "resumed from" in outputs[0] and "checkpoint-1" in outputs[0]
    assert all(served(url) > count for url, count in zip(both[0], before, strict=True))


def test_two_hosts_without_a_shared_folder_end_with_one_line(hosts, tmp_path):
    codes, outputs = hosts(tmp_path / "one", tmp_path / "other", max_steps=1)
    assert 0 not in codes
    assert "cannot see what rank 0 writes there" in outputs[0], outputs


def test_a_policy_server_that_is_back_serves_again(run, policy):
    starts = policy.log.count("ready after")
    process = run.start("--max_steps", "1000")
    wait_for(lambda: (run.output / "rollouts" / "step-0.jsonl").exists() or process.poll())
    policy.signal(signal.SIGKILL)
    policy.wait_ready(starts + 1)
    wait_for(lambda: served(policy.url) > 0 or process.poll() is not None)
    assert process.poll() is None, run.log
    process.send_signal(signal.SIGTERM)
    assert run.finish(process) == 143, run.log
    assert "is away" in run.log and "is back after" in run.log
    versions = [{row["policy_version"] for row in run.records(i)} for i in range(2)]
    assert all(len(names) == 1 for names in versions)


def test_a_policy_server_that_is_gone_for_good_is_done_without(run, policy):
    process = run.start("--max_steps", "4", program=TWO_RANKS)
    wait_for(lambda: (run.output / "rollouts" / "step-0.jsonl").exists() or process.poll())
    policy.process.send_signal(signal.SIGSTOP)  # which starts it again otherwise
    try:
        policy.signal(signal.SIGKILL)
        assert run.finish(process) == 0, run.log
    finally:
        policy.process.send_signal(signal.SIGCONT)
    run.check_complete(4)
    assert run.steps()[-1]["servers/alive"] == 3
