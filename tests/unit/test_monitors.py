"""Monitors of a policy in training: their warnings and metrics, the end of a run; and the best
checkpoint."""

from __future__ import annotations

import logging

import pytest
from trainers import RecordedPaths, make_trainer

from rea_rl.configs import REARLConfig
from rea_rl.rollout.record import Batch, detector_metrics
from rea_rl.run import training as entry
from rea_rl.run.checkpoints import last_checkpoint
from rea_rl.run.endings import MonitorError
from rea_rl.run.monitors import MONITORS, NAMES, MonitorKeys, Monitors


def warned(caplog, keys, metric, values, start=1):
    """Steps at which there is a warning, and the monitors that are on at each step."""
    monitors, history, states = Monitors(keys), [], []
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for step, value in enumerate(values, start=start):
            states.append(monitors.check(history, {metric: value, "loss": 0.0}, step))
            history.append({metric: value, "step": step})
    return [int(record.getMessage().split()[1].rstrip(":")) for record in caplog.records], states


@pytest.mark.parametrize(
    ("metric", "values", "steps"),
    [
        # The first five have 0.02 on average; below 0.01 over the last five from step 9 on: (0.02 +
        # 4 * 0.002) / 5.
        ("reflection/density", [0.02] * 5 + [0.002] * 6, [8]),
        ("reflection/density", [0.02, 0.021, 0.018, 0.02, 0.019] * 4, []),
        ("reflection/density", [0.02] * 5 + [0.012] * 10, []),
        ("entropy", [1.0] * 5 + [0.1] * 10, [10]),
        ("entropy", [1.0] * 5 + [0.3] * 10, []),
        ("rollout/truncated", [0.0] * 5 + [0.6] * 5, [8]),
        # again, after it was over
        ("rollout/truncated", [0.0] * 5 + [0.6] * 5 + [0.0] * 5 + [0.9] * 5, [8, 17]),
        ("rollout/truncated", [0.2] * 10, []),
        ("groups/no_signal", [0.5] * 3 + [1.0] * 5, [8]),
        ("groups/no_signal", [0.8] * 10, []),
        ("reflection/found", [0.0] * 3, [1]),
        ("reflection/found", [1.0] * 3, [1]),
        ("reflection/found", [0.6] * 10, []),
        ("revision/gain", [0.3] * 5 + [-0.4] * 5, [8]),
        ("revision/gain", [0.3, -0.1] * 5, []),
        ("eval_rollout/accuracy", [0.5, 0.6, 0.55, 0.45], [4]),
        ("eval_rollout/accuracy", [0.5, 0.45, 0.6], []),
    ],
)
def test_a_monitor_warns_when_its_threshold_is_crossed(caplog, metric, values, steps):
    assert warned(caplog, MonitorKeys(), metric, values)[0] == steps
    assert all(
        metric in record.getMessage() and "monitor_" in record.getMessage()
        for record in caplog.records
    )


def test_each_monitor_is_logged_and_can_be_switched_off(caplog):
    for monitor in MONITORS:
        value = 1.0 if monitor.above else -1.0 if monitor.name == "gain" else 0.0
        values = [0.2] * 5 + [value] * 6
        name = "eval_" * monitor.metric.startswith("eval_") + f"monitor/{monitor.name}"
        _, states = warned(caplog, MonitorKeys(), monitor.metric, values)
        assert states[0][name] == 0.0 and states[-1][name] == 1.0, monitor
        steps, states = warned(caplog, MonitorKeys(**{monitor.key: None}), monitor.metric, values)
        assert steps == [] and name not in states[-1], monitor


def test_a_metric_that_is_missing_or_no_number_is_passed_over(caplog):
    values = [0.02] * 5 + [None, float("nan")] + [0.02] * 5
    assert warned(caplog, MonitorKeys(), "reflection/density", values)[0] == []
    assert Monitors(MonitorKeys()).check([{"step": 1}], {"loss": 1.0}, 2) == {}


def test_first_steps_are_those_of_the_run_also_where_it_logs_seldom(caplog):
    history = [{"step": step, "entropy": 1.0} for step in (10, 20)]
    with caplog.at_level(logging.WARNING):
        Monitors(MonitorKeys()).check(history, {"entropy": 0.1}, 30)
    assert (
        "step 30: entropy is 0.1 over the last 5 steps, 1 over the first (monitor_entropy: 0.2)"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"monitor_stop": ["reflection"]},
            r"monitor_stop has \['reflection'\]; it takes all, or some of reflections, ",
        ),
        ({"monitor_truncated": 1.5}, "monitor_truncated is 1.5; it must be a share"),
        ({"monitor_window": 0}, "monitor_window is 0"),
    ],
)
def test_wrong_keys_are_refused(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        REARLConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=2,
            reflection_model="x",
            tokens_per_reflection=1.0, **wrong,
        )  # fmt: skip


class Fading(RecordedPaths):
    """Paths without reflection from a step on, and evaluations with a given accuracy each."""

    def __init__(self, last=2, accuracies=(1.0,), p_result=(0.1, 0.9, 0.2)):
        super().__init__()
        self.last, self.accuracies, self.p_result, self.evaluations = (
            last,
            accuracies,
            list(p_result),
            0,
        )

    def run(self, rows, batch):
        rollouts = super().run(rows, batch)
        if not batch.revision:
            accuracy = self.accuracies[min(self.evaluations, len(self.accuracies) - 1)]
            self.evaluations += 1
            for i, rollout in enumerate(rollouts):
                rollout.correct = i < round(accuracy * len(rollouts))
        return rollouts

    def path(self, row, batch, i):
        path = super().path(row, batch, i)
        path.num_reflections, path.p_result = int(batch.step <= self.last), self.p_result
        return path


def test_a_run_that_gives_up_reflection_says_so_once_and_logs_it(model_folder, tmp_path, caplog):
    trainer = make_trainer(model_folder, tmp_path, Fading(), max_steps=7, monitor_window=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    lines = [
        record.getMessage()
        for record in caplog.records
        if "reflection/density is" in record.getMessage()
    ]
    assert (
        len(lines) == 1
        and lines[0].startswith("step 5: ")
        and "monitor_reflections: 0.5" in lines[0]
    )
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["monitor/reflections"] for entry in logged] == [0, 0, 0, 0, 1, 1, 1]
    assert {f"monitor/{name}" for name in NAMES if name != "accuracy"} <= logged[0].keys()
    assert 0 <= logged[0]["groups/no_signal"] <= 1


def test_a_resumed_run_remembers_its_first_steps(model_folder, tmp_path, caplog):
    keys = {"max_steps": 6, "monitor_window": 2, "save_strategy": "steps", "save_steps": 3}
    trainer = make_trainer(model_folder, tmp_path, Fading(last=1), **keys)
    trainer.train()
    resumed = make_trainer(model_folder, tmp_path, Fading(last=1), **keys)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "step 4: reflection/density is 0 over the last 2 steps" in caplog.text


def test_a_monitor_of_monitor_stop_ends_the_run_behind_a_checkpoint(model_folder, tmp_path):
    keys = {"max_steps": 9, "monitor_window": 2, "save_strategy": "steps", "save_steps": 100}
    trainer = make_trainer(model_folder, tmp_path, Fading(), monitor_stop=["reflections"], **keys)
    with pytest.raises(
        MonitorError, match="monitor_stop ends the run at step 5: reflection/density is"
    ):
        entry.train(trainer)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert not (tmp_path / "train_results.json").exists()
    other = make_trainer(
        model_folder, tmp_path / "other", Fading(), monitor_stop=["truncated"], **keys
    )
    entry.train(other)
    assert other.state.global_step == 9


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_stays_beside_the_last_ones(model_folder, tmp_path, caplog, limit):
    """Evaluated after each step, saved after every second one: the best, of step 3, is saved
    too, and not removed."""
    engine = Fading(last=99, accuracies=(1 / 3, 1 / 3, 1.0, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3))
    trainer = make_trainer(
        model_folder, tmp_path, engine, max_steps=8, save_strategy="steps", save_steps=2,
        save_total_limit=limit,
        eval_strategy="steps", eval_steps=1, num_generations_eval=1,
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        entry.train(trainer)
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert {"checkpoint-3", "checkpoint-8"} <= kept and len(kept) == max(limit, 2)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    assert f"rollout/accuracy was best, 1, in {tmp_path / 'checkpoint-3'}" in caplog.text
    assert (
        "step 4: eval_rollout/accuracy is 0.6667 against 1 at its best (monitor_accuracy: 0.1)"
        in caplog.text
    )
    evaluations = [entry for entry in trainer.state.log_history if "eval_rollout/accuracy" in entry]
    assert [entry["eval_monitor/accuracy"] for entry in evaluations][:4] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("p_result", "found"), [((0.0, 0.1, 0.2), 0.0), ((0.1, 0.9, 0.2), 1.0), ((), 0.0)]
)
def test_share_of_paths_in_which_the_detector_finds_a_result(p_result, found):
    rollouts = Fading(p_result=p_result).run(
        [{"problem_id": "p0", "prompt": "<U>1<A>"}], Batch(0, "policy-0", True)
    )
    assert detector_metrics(rollouts) == {"reflection/found": found}
    for rollout in rollouts:
        rollout.num_paragraphs = 0  # not labelled
    assert detector_metrics(rollouts) == {}
