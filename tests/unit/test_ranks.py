"""Two ranks: they take the steps of one process, hand over to others, and fail together."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from trainers import records

from rea_rl.run.checkpoints import last_checkpoint

pytestmark = pytest.mark.slow


def check_same_adapter(one, other):
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-3, msg=name)


def losses(folder):
    """Logged loss and gradient norm of each step."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [[entry["loss"], entry["grad_norm"]] for entry in history if "loss" in entry]


def written(folder):
    """When the rollouts of the first step were."""
    return (folder / "rollouts" / "step-0.jsonl").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("config", "packing", "checkpointing", "stops"),
    [
        ("", "shared_prefix", "", [0]),
        ("ddp", "none", "", [0]),
        ("zero2", "shared_prefix", "", [2, 3]),
        ("zero3", "none", "", [0]),
        ("zero3", "none", "true", [0]),
    ],
)
def test_two_processes_take_the_step_of_one(
    config, packing, checkpointing, stops, one_process, same_step, tmp_path
):
    """Same batches, also those looked up ahead; gradients averaged over several forward passes:
    same weights.

    With ZeRO-2 also over an interruption behind step 2, with ZeRO-3 also with reentrant
    checkpointing.
    """
    variables = {"PACKING": packing, "CHECKPOINTING": checkpointing}
    times = {written(same_step(tmp_path, config=config, STOP=stop, **variables)) for stop in stops}
    assert len(times) == 1  # the second start did not begin again
    for step in ("step-0", "step-1", "step-2"):
        rows = records(one_process, step), records(tmp_path, step)
        assert [row["problem_id"] for row in rows[0]] == [row["problem_id"] for row in rows[1]]
        assert [row["advantage"] for row in rows[0]] == pytest.approx(
            [row["advantage"] for row in rows[1]], abs=1e-5
        )
    one, two = losses(one_process), losses(tmp_path)
    assert len(one) == 3 and two == [pytest.approx(step, abs=2e-4, rel=2e-3) for step in one]
    check_same_adapter(one_process, tmp_path)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_on_another_number_of_ranks(one_process, same_step, tmp_path, before, after):
    """Two steps on some ranks, the third on others: the batches of an uninterrupted run, and its
    weights up to rounding.

    Of the checkpoints, `save_total_limit` has kept the newest.
    """
    times = set()
    for ranks, stop in ((before, 2), (after, 3)):
        times.add(written(same_step(tmp_path, ranks=ranks, STOP=stop)))
        names = [path.name for path in tmp_path.glob("checkpoint-*")]
        assert names == [f"checkpoint-{stop}"]
    assert len(times) == 1  # the second start did not begin again
    whole, moved = (
        [row["problem_id"] for row in records(folder, "step-2")]
        for folder in (one_process, tmp_path)
    )
    assert whole == moved
    check_same_adapter(one_process, tmp_path)


def test_ranks_end_together_and_write_one_checkpoint(run_ranks, model_folder, tmp_path):
    """Whatever failed for one rank only, the other one does not wait for it for ever."""
    finished = run_ranks("dead_rank.py", model_folder, tmp_path)
    said = {
        "away": "policy_server does not answer",
        "refused_request": "BadRequestError: prompt too long",
        "mistake": "KeyError: 'no such thing'",
        "late_signal": "SIGTERM; give the same command",
        "signal": "",  # SIGTERM for one of them; what the other says depends on the time
        "refused_adapter": "no room for another adapter",
    }
    assert finished.returncode == 0, finished.stderr
    for name, words in said.items():
        lines = [line for line in finished.stderr.splitlines() if line.startswith(f"{name}, rank ")]
        assert len(lines) == 2 and all(words in line for line in lines), finished.stderr
        folder = tmp_path / name
        last = folder / "checkpoint-2"
        assert last_checkpoint(folder) == str(last)
        ranks = {path.name for path in last.glob("rng_state*")}
        assert ranks == {"rng_state_0.pth", "rng_state_1.pth"}
    assert finished.stderr.count("Traceback") == 1  # that of the mistake, where it was made


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_ranks_skip_together_and_end_together(run_ranks, model_folder, tmp_path, config):
    """A loss of the second of two ranks is NaN, then infinite with a finite gradient, then NaN
    three times in a row."""
    finished = run_ranks("spoiled_rank.py", model_folder, tmp_path / "out", config=config)
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank-*.json"))]
    assert len(reports) == 2, finished.stderr[-3000:]
    for report in reports:
        assert report["changed"] == [True, False, True, False, True, False, False], report
        assert report["finite"] and "non-finite" in report["error"]
        assert report["rates"] == pytest.approx([1e-2 * (8 - step) / 8 for step in range(1, 8)])
    # Of the second rank's first micro-batch, the one that was spoiled, and not of the other three.
    assert re.match(
        r"step 1 has .*, loss nan, rows p\d, p\d; it is skipped", reports[0]["warnings"][0]
    )
    assert last_checkpoint(tmp_path / "out") is not None
