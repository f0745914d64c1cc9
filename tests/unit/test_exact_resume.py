"""A resumed run computes what an uninterrupted one does, and begins with the newest whole
checkpoint."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from same_step import PathsByProblem, StopAt
from test_trainer_units import RecordedPaths, adapter, make_trainer, records
from tiny import save_model

from rea_rl import entry
from rea_rl.utils import is_whole, last_checkpoint


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("lag, packing", [(0, "none"), (1, "none"), (0, "shared_prefix")])
def test_resume_is_exact(model_folder, tmp_path, lag, packing):
    """2N steps, and N steps with N more in a new trainer: bitwise equal losses, gradient norms,
    weights and optimizer state.

    Recorded paths depend on their problem alone. Dropout draws random numbers, except with packing,
    which has none. The schedule decays, and the second epoch, with an order of its own, begins
    after step 8.
    """
    half, whole, dropout = 5, 10, 0.0 if packing == "shared_prefix" else 0.1
    keys = {
        "packing": packing, "max_rollout_lag": lag, "save_strategy": "steps", "save_steps": half,
        "tokens_per_forward": 60,
        "lr_scheduler_type": "linear", "warmup_steps": 2, "max_steps": whole,
    }  # fmt: skip

    def train(folder, stop=None, resume=None):
        engine = PathsByProblem(
            correct=(True, True, False, True, True), lengths=(40, 12, 30, 9, 25, 7, 33)
        )
        trainer = make_trainer(
            model_folder, tmp_path / folder, engine, lora_dropout=dropout, **keys
        )
        if stop is not None:
            trainer.add_callback(StopAt(stop))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    one = train("one")
    train("two", stop=half)
    assert last_checkpoint(tmp_path / "two") == str(tmp_path / "two" / f"checkpoint-{half}")
    two = train("two", resume=last_checkpoint(tmp_path / "two"))
    names = ("step", "loss", "grad_norm", "learning_rate", "kl", "reward", "sampling/ratio")
    logs = [
        [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (one, two)
    ]
    assert len(logs[0]) == whole and logs[0] == logs[1]
    assert len({row[1] for row in logs[0]}) > whole // 2  # losses that could differ
    assert all(torch.equal(weights, adapter(two)[name]) for name, weights in adapter(one).items())
    last = [
        torch.load(tmp_path / name / f"checkpoint-{whole}" / "optimizer.pt")
        for name in ("one", "two")
    ]
    for mine, theirs in zip(last[0]["state"].values(), last[1]["state"].values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert two.weight_sync.steps[0] == half


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_on_another_number_of_ranks(model_folder, tmp_path, before, after):
    """Two steps on some ranks, the third on others: the batches of an uninterrupted run, and its
    weights up to rounding.

    Of the checkpoints, `save_total_limit` has kept the newest.
    """
    written = []
    for folder, ranks, stop in (("whole", 1, 3), ("moved", before, 2), ("moved", after, 3)):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        script = [
            str(Path(__file__).with_name("same_step.py")),
            str(model_folder),
            str(tmp_path / folder),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "STOP": str(stop),
        }
        finished = subprocess.run(
            [sys.executable, *launch, *script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert finished.returncode == 0, finished.stderr
        assert [path.name for path in (tmp_path / folder).glob("checkpoint-*")] == [
            f"checkpoint-{stop}"
        ]
        written.append((tmp_path / folder / "rollouts" / "step-0.jsonl").stat().st_mtime_ns)
    assert written[1] == written[2]  # the third run did not begin anew
    whole, moved = (
        [row["problem_id"] for row in records(tmp_path / name, "step-2")]
        for name in ("whole", "moved")
    )
    assert whole == moved
    whole, moved = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "moved")
    )
    for name in whole:
        torch.testing.assert_close(whole[name], moved[name], atol=1e-4, rtol=1e-3, msg=name)


def write_checkpoint(folder, state='{"global_step": 1}'):
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


@pytest.mark.parametrize("state", [None, "", '{"global_step": 12, "log_his', "\x00\x00"])
def test_interrupted_checkpoint_is_passed_over(tmp_path, caplog, state):
    whole = write_checkpoint(tmp_path / "checkpoint-9")
    write_checkpoint(tmp_path / "checkpoint-8")
    broken = write_checkpoint(tmp_path / "checkpoint-12", state)
    (tmp_path / "checkpoint-best").mkdir()
    assert not is_whole(broken) and is_whole(whole)
    assert last_checkpoint(tmp_path) == str(whole)
    assert f"{broken} was interrupted while it was written" in caplog.text
    assert last_checkpoint(tmp_path / "absent") is None


class DeadAtStep(RecordedPaths):
    """Engine whose server stays away at a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def run(self, rows, batch):
        if batch.step == self.step:
            raise ConnectionError("policy_server does not answer")
        return super().run(rows, batch)


def test_dead_server_leaves_a_checkpoint_of_the_last_finished_step(model_folder, tmp_path):
    """With a batch ahead, too: what the checkpoint holds are the weights after the last step
    that was trained."""
    trainer = make_trainer(
        model_folder, tmp_path / "dead", DeadAtStep(3), max_steps=6, max_rollout_lag=1
    )
    # of a process that was killed
    left_over = tmp_path / "dead" / "rollouts" / ".step-1.jsonl.4711"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("half")
    with pytest.raises(ConnectionError, match="does not answer"):
        entry.train(trainer)
    assert last_checkpoint(tmp_path / "dead") is None and not left_over.exists()
    entry.save_last_step(trainer)
    assert last_checkpoint(tmp_path / "dead") == str(tmp_path / "dead" / "checkpoint-3")
    keys = {"max_steps": 6, "max_rollout_lag": 1}
    rest = make_trainer(model_folder, tmp_path / "dead", RecordedPaths(), **keys)
    rest.train(resume_from_checkpoint=last_checkpoint(tmp_path / "dead"))
    whole = make_trainer(model_folder, tmp_path / "whole", RecordedPaths(), **keys)
    whole.train()
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (rest, whole)
    ]
    assert len(losses[0]) == 6 and losses[0] == losses[1]


def test_nothing_is_written_where_no_step_was_finished(model_folder, tmp_path, caplog):
    trainer = make_trainer(model_folder, tmp_path, DeadAtStep(0), max_steps=2)
    with pytest.raises(ConnectionError):
        trainer.train()
    with caplog.at_level(logging.WARNING):
        entry.save_last_step(trainer)
    assert last_checkpoint(tmp_path) is None and not list(tmp_path.glob("checkpoint-*"))
    assert "no step was finished" in caplog.text


@pytest.mark.slow
def test_ranks_end_together_and_write_one_checkpoint(model_folder, tmp_path):
    """Whatever failed for one rank only, the other one does not wait for it for ever."""
    script = Path(__file__).with_name("dead_rank.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    finished = subprocess.run(
        [sys.executable, *launch, str(model_folder), str(tmp_path)], capture_output=True, text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
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
