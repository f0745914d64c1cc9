"""A resumed run computes what an uninterrupted one does, and begins with the newest whole
checkpoint."""

from __future__ import annotations

import logging

import pytest
import torch
from same_step import PathsByProblem, StopAt
from trainers import RecordedPaths, adapter, make_trainer

from rea_rl.run import training as entry
from rea_rl.run.checkpoints import is_whole, last_checkpoint


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


def write_checkpoint(folder, state='{"global_step": 1}'):
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


@pytest.mark.parametrize(
    "state", [None, "", '{"global_step": 12, "log_his', "\x00\x00", "[]", '{"epoch": 1}']
)
def test_interrupted_checkpoint_is_passed_over(tmp_path, caplog, state):
    whole = write_checkpoint(tmp_path / "checkpoint-9")
    write_checkpoint(tmp_path / "checkpoint-8")
    broken = write_checkpoint(tmp_path / "checkpoint-12", state)
    (tmp_path / "checkpoint-best").mkdir()
    # neither copies nor files are checkpoints of the run
    write_checkpoint(tmp_path / "checkpoint-30-old")
    write_checkpoint(tmp_path / "checkpoint-31 (copy)")
    (tmp_path / "checkpoint-32").write_text("")
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
