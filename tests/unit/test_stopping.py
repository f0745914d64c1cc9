"""SIGTERM during a training: a checkpoint of the last finished step, a status of 143, and the
same end after a resume."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from rollouts import VERSION, make_engine, make_row
from scripted_server import ScriptedServer, completion
from supervised import sft_arguments
from trainers import RecordedPaths, adapter, make_trainer
from transformers import Trainer

from rea_rl import sft
from rea_rl.rollout.record import Batch
from rea_rl.run import training as entry
from rea_rl.run.checkpoints import last_checkpoint

SETTINGS = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 100,
    "lr_scheduler_type": "constant",
}


@pytest.fixture(autouse=True)
def handler():
    """The test's own process must not be ended, nor keep a handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Signalled(RecordedPaths):
    """Gets the signal while it makes the paths of a step; with `waits` they never come.

    Without a lag the main thread waits for them by then: a signal just before would not wake it.
    """

    def __init__(self, step: int, waits: bool, lag: int = 0):
        super().__init__()
        self.step, self.waits, self.given_up = step, waits, threading.Event()
        self.pause = 0.0 if lag else 0.5

    def run(self, rows, batch):
        if batch.step == self.step and batch.revision:
            time.sleep(self.pause)
            os.kill(os.getpid(), signal.SIGTERM)
            if self.waits:
                assert self.given_up.wait(120)
                raise CancelledError
            self.given_up.wait(120)
        return super().run(rows, batch)


def start(model_folder, folder, engine, **changes):
    trainer = make_trainer(model_folder, folder, engine, **{**SETTINGS, **changes})
    entry.train(trainer, getattr(getattr(engine, "given_up", None), "set", lambda: None))
    return trainer


@pytest.mark.parametrize(("waits", "done"), [(True, 2), (False, 3)])
@pytest.mark.parametrize("lag", [0, 1])
def test_a_signal_is_followed_by_a_checkpoint_and_a_resume_by_the_same_end(
    model_folder, tmp_path, waits, done, lag
):
    """Paths that are still being made are given up; a step that has its paths is finished."""
    with pytest.raises(entry.Interrupted, match="give the same command"):
        start(model_folder, tmp_path / "run", Signalled(2, waits, lag), max_rollout_lag=lag)
    found = int(last_checkpoint(tmp_path / "run").rsplit("-")[-1])
    # With a lag the paths of step 2 are made while step 1 is taken, which is then finished.
    assert found == (done if not lag else 2)
    assert not (tmp_path / "run" / "train_results.json").exists() and not list(
        (tmp_path / "run").glob("*.safetensors")
    )
    assert not [
        name for name in os.listdir(tmp_path / "run" / "rollouts") if name.startswith("eval")
    ]
    resumed = start(model_folder, tmp_path / "run", RecordedPaths(), max_rollout_lag=lag)
    whole = start(model_folder, tmp_path / "whole", RecordedPaths(), max_rollout_lag=lag)
    assert resumed.state.global_step == 4
    for name, weight in adapter(whole).items():
        assert torch.equal(weight, adapter(resumed)[name]), name


def test_a_second_signal_does_not_hurt_the_checkpoint(model_folder, tmp_path, monkeypatch):
    save = entry.save_last_step

    def save_under_fire(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        save(trainer)

    monkeypatch.setattr(entry, "save_last_step", save_under_fire)
    with pytest.raises(entry.Interrupted):
        start(model_folder, tmp_path, Signalled(1, waits=True))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_without_a_finished_step_there_is_nothing_to_save(model_folder, tmp_path, caplog):
    with pytest.raises(entry.Interrupted):
        start(model_folder, tmp_path, Signalled(0, waits=True))
    assert last_checkpoint(tmp_path) is None and "no step was finished" in caplog.text


def test_a_training_that_nobody_ends_leaves_the_signal_as_it_was(model_folder, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = start(model_folder, tmp_path, RecordedPaths(), max_steps=1)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "StopAtSigterm" not in [
        type(callback).__name__ for callback in trainer.callback_handler.callbacks
    ]


def test_sft_ends_likewise(tmp_path, monkeypatch, capsys):
    """The command: status 143, one line, and a checkpoint that the same command continues."""
    training_step = Trainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", signalled)
    flags = sft_arguments(tmp_path, max_steps="3", save_steps="100")
    output = Path(flags[flags.index("--output_dir") + 1])
    with pytest.raises(SystemExit) as stop:
        sft.main(flags)
    assert stop.value.code == 143
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: SIGTERM; give the same command")
    )
    assert last_checkpoint(output) == str(output / "checkpoint-2")
    monkeypatch.setattr(Trainer, "training_step", training_step)
    sft.main(flags)
    assert (output / "train_results.json").is_file()


def test_paths_under_way_are_given_up_at_once(tmp_path):
    release = threading.Event()

    def hang(_):
        release.wait(20)
        return completion([1])

    with ScriptedServer(hang, [VERSION]) as server, make_engine(tmp_path, server.url) as engine:
        threading.Timer(0.5, engine.cancel).start()
        # those under way, and those that would follow
        for error in (CancelledError, ConnectionError):
            with pytest.raises(error):
                engine.run([make_row()], Batch(7, VERSION, False))
        release.set()
    assert len(server.bodies("completions")) == 1
