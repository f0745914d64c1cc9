"""Counters of a run: over logging windows, ranks and resumes, with values that were worked out by
hand."""

from __future__ import annotations

from collections import defaultdict

import pytest
from trainers import RecordedPaths, make_trainer
from transformers import TrainerState

from rea_rl.rollout.endpoint import ServerWatch, server_counts
from rea_rl.run.counts import Counters, collect, outages


def test_a_window_has_the_last_value_of_a_counter_and_the_mean_of_a_share():
    window = defaultdict(list)
    steps = [(1.0, 0.25, 3, 2.0, 5.0), (4.0, 0.75, 2, 9.0, 7.0), (4.0, 0.5, 3, 1.5, 9.0)]
    for outages_, accuracy, alive, ratio, pairs in steps:
        collect(window, {
            "servers/outages": outages_, "rollout/accuracy": accuracy, "servers/alive": alive,
            "sampling/ratio_max": ratio, "verifier/pairs": pairs,
        })  # fmt: skip
    means = {key: sum(values) / len(values) for key, values in window.items()}  # as TRL does
    assert means == {
        "servers/outages": 4.0, "rollout/accuracy": 0.5, "servers/alive": 2.0,
        "sampling/ratio_max": 9.0, "verifier/pairs": 9.0,
    }  # fmt: skip


def of_rank(failed, pairs, alive, away):
    return {
        "servers/failed_requests": failed, "verifier/pairs": pairs, "servers/alive": alive,
        "servers/away": away, "servers/outages": 77,
    }  # fmt: skip


def test_ranks_add_up_and_an_outage_that_two_see_is_one():
    first = of_rank(3, 10, 2, [("a", 1.0, 5.0), ("b", 2.0, 3.0)])
    second = of_rank(1, 12, 1, [("a", 1.5, 6.0), ("a", 9.0, 10.0)])
    swaps = {"servers/failed_requests": 2, "servers/away": [("a", 0.5, 1.5)]}
    assert Counters().add([first, second, swaps], TrainerState()) == {
        "servers/failed_requests": 6.0, "verifier/pairs": 22.0, "servers/alive": 1.0,
        "servers/outages": 3.0, "servers/downtime_seconds": 5.5 + 1.0 + 1.0,
    }  # fmt: skip
    assert outages([]) == {"servers/outages": 0.0, "servers/downtime_seconds": 0.0}


def test_a_resumed_run_counts_on_from_its_checkpoint(tmp_path):
    state, counters = TrainerState(), Counters()
    for pairs, total in ((4, 4.0), (9, 9.0), (9, 9.0)):
        assert counters.add([{"verifier/pairs": pairs}], state)["verifier/pairs"] == total
    state.save_to_json(tmp_path / "state.json")
    counters.add([{"verifier/pairs": 50}], state)  # steps that are lost and come again
    state, counters = TrainerState.load_from_json(tmp_path / "state.json"), Counters()
    for pairs, total in ((2, 11.0), (5, 14.0)):
        assert counters.add([{"verifier/pairs": pairs}], state)["verifier/pairs"] == total


def test_an_outage_that_lasts_is_counted_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.time", lambda: now[0] + 1e9)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = ServerWatch("policy_server", "http://a", 60.0)
    found = []
    for seconds, note in ((0, "away"), (3, None), (2, "well"), (9, None), (0, "away"), (4, "well")):
        now[0] += seconds
        if note == "away":
            watch._note_away("", OSError("gone"), "waiting")
        elif note == "well":
            watch._note_well("")
        counts = server_counts([watch])
        found.append((counts["servers/outages"], round(counts["servers/downtime_seconds"])))
    assert found == [(1, 0), (1, 3), (1, 5), (1, 5), (2, 5), (2, 9)]


class Counting(RecordedPaths):
    """Each batch has 3 pairs."""

    @property
    def counts(self):
        return {"verifier/pairs": 3 * len(self.batches), "servers/alive": 2}


def test_a_log_over_two_steps_and_a_resume_has_sums(model_folder, tmp_path):
    changes = {"logging_steps": 2, "save_strategy": "steps", "save_steps": 3}
    run = make_trainer(model_folder, tmp_path, Counting(), max_steps=4, **changes)
    run.train()
    logged = [e["verifier/pairs"] for e in run.state.log_history if "verifier/pairs" in e]
    assert logged == [6.0, 12.0]
    again = make_trainer(model_folder, tmp_path, Counting(), max_steps=6, **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    entries = [e for e in again.state.log_history if "verifier/pairs" in e]
    assert [e["verifier/pairs"] for e in entries] == [6.0, 12.0, 18.0]
    assert {e["servers/alive"] for e in entries} == {2.0}
    assert [e["rollout/accuracy"] for e in entries] == [pytest.approx(0.5)] * 3
