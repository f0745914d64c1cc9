"""Rollouts ahead of training: order, versions, evaluation, resume and errors, on the real
trainer with recorded paths."""

from __future__ import annotations

import threading
import time

import pytest
from same_step import PathsByProblem
from trainers import RecordedPaths, make_rows, make_trainer, records

from rea_rl.configs import REARLConfig
from rea_rl.rollout.lookahead import Lookahead
from rea_rl.rollout.record import Batch


def by_step(engine):
    """(step, policy version, problems) of the training batches that the engine was asked for, by
    step."""
    batches = [
        (batch.step, batch.policy_version, rows) for batch, rows in engine.batches if batch.revision
    ]
    return sorted(batches)


class SlowPaths(RecordedPaths):
    """Engine that takes its time and notes which batches were under way together."""

    def __init__(self, seconds=0.05):
        super().__init__()
        self.seconds, self.under_way, self.together = seconds, [], []
        self.lock = threading.Lock()

    def run(self, rows, batch):
        with self.lock:
            self.under_way.append(batch)
            self.together.append(list(self.under_way))
        time.sleep(self.seconds)
        with self.lock:
            self.under_way.remove(batch)
        return super().run(rows, batch)


def test_the_next_batch_is_made_with_the_newest_policy(model_folder, tmp_path):
    engine = RecordedPaths()
    trainer = make_trainer(model_folder, tmp_path, engine, max_steps=4, max_rollout_lag=1)
    trainer.train()
    assert [(step, version) for step, version, _ in by_step(engine)] == [
        (0, "policy-0"), (1, "policy-0"), (2, "policy-1"), (3, "policy-2")
    ]  # fmt: skip
    assert trainer.weight_sync.steps == [0, 1, 2, 3]
    # The version of the batch that is waited for stays on the server while the next one is started.
    assert trainer.weight_sync.in_use == [set(), {"policy-0"}, {"policy-1"}, {"policy-2"}]
    log = [entry for entry in trainer.state.log_history if "rollout/lag" in entry]
    assert [entry["rollout/lag"] for entry in log] == [0, 1, 1, 1]
    assert {row["policy_version"] for row in records(tmp_path, "step-3")} == {"policy-2"}
    assert {row["step"] for row in records(tmp_path, "step-3")} == {3}


@pytest.mark.parametrize("lag", [1, 3])
def test_same_batches_in_the_same_order_with_any_lag(model_folder, tmp_path, lag):
    """Also past the end of an epoch (8 problems, one a step), and none after the last step."""

    def batches(lag):
        engine = RecordedPaths()
        make_trainer(
            model_folder, tmp_path / str(lag), engine, max_steps=10, max_rollout_lag=lag
        ).train()
        return [(step, problems) for step, _, problems in by_step(engine)]

    assert batches(lag) == batches(0)


def test_resumed_run_draws_again_what_was_under_way(model_folder, tmp_path):
    keys = {
        "save_strategy": "steps",
        "save_steps": 1,
        "max_rollout_lag": 1,
        "lr_scheduler_type": "constant",
    }
    whole, part, rest = RecordedPaths(), RecordedPaths(), RecordedPaths()
    make_trainer(model_folder, tmp_path / "whole", whole, max_steps=10, **keys).train()
    make_trainer(model_folder, tmp_path / "part", part, max_steps=7, **keys).train()
    make_trainer(model_folder, tmp_path / "part", rest, max_steps=10, **keys).train(
        resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-6")
    )
    assert [step for step, *_ in by_step(part) + by_step(rest)] == [*range(7), *range(6, 10)]
    assert [version for _, version, _ in by_step(rest)] == [
        "policy-6",
        "policy-6",
        "policy-7",
        "policy-8",
    ]

    def trained(folder):
        return [
            {row["problem_id"] for row in records(tmp_path / folder, f"step-{step}")}
            for step in range(10)
        ]

    assert trained("part") == trained("whole")


def test_losses_on_recorded_paths_do_not_depend_on_the_lag(model_folder, tmp_path):
    def losses(lag):
        engine = PathsByProblem(
            correct=(True, True, False, True, True), lengths=(40, 12, 30, 9, 25, 7, 33)
        )
        trainer = make_trainer(
            model_folder, tmp_path / str(lag), engine, max_steps=4, max_rollout_lag=lag
        )
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        return [
            [entry[key] for key in ("loss", "grad_norm", "kl", "sampling/ratio")] for entry in log
        ]

    assert losses(0) == losses(1)


def test_evaluation_has_the_servers_for_itself(model_folder, tmp_path):
    engine = SlowPaths()
    trainer = make_trainer(
        model_folder,
        tmp_path,
        engine,
        max_steps=4,
        max_rollout_lag=1,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    evaluations = [batches for batches in engine.together if not batches[-1].revision]
    assert len(evaluations) == 4
    assert all(len(batches) == 1 for batches in evaluations)
    assert [batches[0].policy_version for batches in evaluations] == [
        f"policy-{step}" for step in (1, 2, 3, 4)
    ]
    assert max(map(len, engine.together)) == 2  # while the trained ones do overlap
    assert [step for step, *_ in by_step(engine)] == [0, 1, 2, 3]


def test_training_goes_on_while_the_next_batch_is_made(model_folder, tmp_path):
    """The chain of step 1 may only return after step 0 was trained: without overlap this would
    not end."""
    trained = threading.Event()

    class WaitsForTraining(RecordedPaths):
        def run(self, rows, batch):
            assert batch.step == 0 or trained.wait(timeout=60)
            return super().run(rows, batch)

    trainer = make_trainer(
        model_folder, tmp_path, WaitsForTraining(), max_steps=2, max_rollout_lag=1
    )
    trainer._note_training = lambda *args: trained.set()
    trainer.train()
    assert trainer.state.global_step == 2


def test_failing_rollout_ends_the_training(model_folder, tmp_path):
    class Failing(RecordedPaths):
        def run(self, rows, batch):
            if batch.step == 2:
                raise ConnectionError("policy_server does not answer")
            return super().run(rows, batch)

    trainer = make_trainer(model_folder, tmp_path, Failing(), max_steps=4, max_rollout_lag=1)
    with pytest.raises(ConnectionError, match="policy_server does not answer"):
        trainer.train()
    assert trainer.state.global_step == 2  # the batches before it were trained


def test_rows_other_than_those_looked_up_are_noticed():
    rows = make_rows()
    ahead = Lookahead(RecordedPaths(), lambda step: [rows[step]], lag=1)
    ahead.start([rows[0]], Batch(0, "policy-0", True), max_steps=2)
    ahead.take(0, [rows[0]])
    with pytest.raises(AssertionError, match="step 1 was looked up with other rows"):
        ahead.take(1, [rows[5]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_rollout_lag": -1}, "max_rollout_lag is -1"),
        (
            {"vllm_importance_sampling_correction": False},
            "max_rollout_lag is 1, but vllm_importance_sampling_correction",
        ),
        (
            {"vllm_importance_sampling_clip_max": None},
            "max_rollout_lag is 1, but vllm_importance_sampling_clip_max is None",
        ),
        ({"ignore_data_skip": True}, "ignore_data_skip is true"),
    ],
)
def test_mistakes_in_the_recipe(tmp_path, changes, message):
    keys = {
        "use_cpu": True,
        "bf16": False,
        "reflection_model": "x",
        "tokens_per_reflection": 9.0,
        "report_to": "none",
    }
    with pytest.raises(ValueError, match=message):
        REARLConfig(output_dir=str(tmp_path), **{**keys, **changes})
