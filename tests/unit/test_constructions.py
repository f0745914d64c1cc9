"""Group constructions, batch-wide scale, dynamic sampling and the signal at the cut: by hand,
then in the trainer."""

from __future__ import annotations

import pytest
import torch
from rollouts import CUT, FORCED, VERSION, encode, labels, make_engine, make_row, policy
from scripted_server import ScriptedServer
from trainers import RecordedPaths, make_rows, make_trainer, records

from rea_rl.revision import (
    OverthinkingSignal,
    differing_groups,
    group_advantages,
    replaced_revisions,
    serial_cuts,
    token_advantages,
)
from rea_rl.rollout.record import Batch, rollout_metrics, trained_rows

# --- pure functions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "correct, sources",
    [
        ([True, True, True, True], [1, 3]),
        ([True, False, False, True], [0, 3]),
        ([False, False, False, False], [0, 2]),  # all wrong: the originals
        ([False, True, False, False], [1, 2]),  # a single right path
        ([], []),
    ],
)
def test_revisions_only(correct, sources):
    assert replaced_revisions(correct) == sources


@pytest.mark.parametrize(
    "num_paragraphs, num_cuts, cuts",
    [
        (8, 3, [1, 3, 5]),
        (4, 3, [0, 1, 2]),
        (10, 1, [4]),
        (3, 3, [0, 0, 1]),
        (1, 3, [0, 0, 0]),
        (100, 4, [19, 39, 59, 79]),
    ],
)
def test_serial_cuts(num_paragraphs, num_cuts, cuts):
    assert serial_cuts(num_paragraphs, num_cuts) == cuts


@pytest.mark.parametrize(
    "totals, correct, expected",
    [
        # Centred: +-1 and +-3; unbiased deviation over the four rows sqrt(20 / 3) = 2.58199.
        ([2, 0, 6, 0], [1, 0, 1, 0], [0.387283, -0.387283, 1.161850, -1.161850]),
        # The second group is all wrong: nulled before the deviation, sqrt(2 / 3).
        ([2, 0, 6, 0], [1, 0, 0, 0], [1.224595, -1.224595, 0, 0]),
        ([1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]),  # ties
        ([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),  # all wrong or truncated
    ],
)
def test_batch_scale_by_hand(totals, correct, expected):
    values = group_advantages(
        torch.tensor(totals).float().unsqueeze(1), torch.tensor(correct), 2, scale="batch"
    )
    assert values.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "totals, kept",
    [
        ([1, 0, 1, 1], [True, True, False, False]),
        ([0, 0, 0.5, 0.2], [False, False, True, True]),
        ([1, 1, 0, 0], [True] * 4),  # no group differs: the step is not emptied
    ],
)
def test_groups_that_differ(totals, kept):
    rewards = torch.tensor([[t / 2, t / 2] for t in totals])
    assert differing_groups(rewards, 2).tolist() == kept


@pytest.mark.parametrize("how, size", [("mean", 1.25), ("max", 2.0)])
def test_signal_at_the_cut_by_hand(how, size):
    # one group of two pairs; mean of the sizes 1.25
    advantages = torch.tensor([2.0, -0.5, 1.5, 1.0])
    signals = [
        OverthinkingSignal([0, 1, 1, 1], [0, 1], (-1.0, 1.0)),
        OverthinkingSignal([0, 0, 1], [0, 0, 1], (0.0, 0.0)),  # a wrong revision
    ]
    values = token_advantages(advantages, signals, 4, 5, how)
    assert values.tolist() == [
        [2.0, 2.0 - size, 2.0 - size, 2.0 - size, 2.0],
        [-0.5, -0.5 + size, -0.5, -0.5, -0.5],
        [1.5] * 5,
        [1.0] * 5,
    ]


# --- the chain ------------------------------------------------------------------------------------


def test_serial_exits_share_the_sampled_path(tmp_path):
    with (
        ScriptedServer(policy(), [VERSION]) as first,
        ScriptedServer(labels(0.5), ["refl"]) as second,
        make_engine(
            tmp_path,
            first.url,
            second.url,
            construction="serial",
            num_generations=4,
            per_device_train_batch_size=4,
        ) as engine,
    ):
        rollouts = engine.run([make_row()] * 4, Batch(7, VERSION, True))
        assert second.bodies("completions") == []  # nobody is asked where to cut
    assert len(first.bodies("completions")) == 4  # one path, three exits
    assert [r.kind for r in rollouts] == ["original", "revision", "revision", "revision"]
    assert [r.cut for r in rollouts] == [None, 0, 1, 2]
    assert rollouts[2].text == CUT + FORCED + "\\boxed{4}"
    assert all(
        r.completion_ids[: r.num_kept_tokens] == encode(rollouts[0].text)[: r.num_kept_tokens]
        for r in rollouts[1:]
    )
    metrics = rollout_metrics(rollouts, revision=True, num_revisions=3)
    assert (metrics["revision/missing"], metrics["revision/success"]) == (0, 1)
    assert metrics["revision/cut_position"] == pytest.approx((0.25 + 0.5 + 0.75) / 3)
    assert trained_rows(rollouts, "serial") == rollouts


# --- the trainer ----------------------------------------------------------------------------------


def test_only_revisions_are_trained(model_folder, tmp_path):  # noqa: F811
    # Two samples of a prompt: the first's revision is wrong, so its original is trained.
    engine = RecordedPaths(correct=(True, False, False, True), lengths=(40, 12, 30, 9))
    trainer = make_trainer(model_folder, tmp_path, engine, construction="revisions_only")
    trainer.model.train()
    batch = trainer._generate_and_score_completions([make_rows()[0]] * 2)
    rows = records(tmp_path, "step-0")
    assert [row["kept"] for row in rows] == [True, False, False, True]
    assert batch["completion_mask"].sum(dim=1).tolist() == [40, 9]
    assert rows[0]["rewards"] == rows[1]["rewards"] != rows[3]["rewards"]
    assert batch["advantages"].tolist() == pytest.approx(
        [rows[0]["advantage"], rows[3]["advantage"]]
    )


def test_equal_groups_leave_the_loss(model_folder, tmp_path):  # noqa: F811
    # Two prompts; all paths of the second are right and equally long.
    engine = RecordedPaths(
        correct=(True, True, False, True, True, True, True, True),
        lengths=(40, 12, 30, 9, 8, 8, 8, 8),
    )
    trainer = make_trainer(
        model_folder, tmp_path, engine, dynamic_sampling=True,
        rewards=("accuracy", "refine_length"),
        per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.model.train()
    batch = trainer._generate_and_score_completions([make_rows()[0]] * 2 + [make_rows()[1]] * 2)
    assert batch["completion_mask"].sum(dim=1).tolist() == [40, 12, 30, 9, 0, 0, 0, 0]
    assert batch["num_items_in_batch"] == 91


@pytest.mark.parametrize(
    "changes",
    [
        {"overthinking_loss": "mean"},
        {"overthinking_loss": "max", "dynamic_sampling": True},
        {"scale_rewards": "batch", "dynamic_sampling": True, "gradient_accumulation_steps": 2},
        {"construction": "revisions_only"},
        {"overthinking_loss": "max", "dynamic_sampling": True, "packing": "shared_prefix"},
    ],
    ids=str,
)
def test_every_switch_trains_on_finite_numbers(model_folder, tmp_path, changes):  # noqa: F811
    trainer = make_trainer(model_folder, tmp_path, max_steps=1, **changes)
    before = {
        name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    trainer.train()
    log = trainer.state.log_history[0]
    assert all(torch.isfinite(torch.tensor(float(value))) for value in log.values())
    assert any(
        not torch.equal(before[n], p)
        for n, p in trainer.model.named_parameters()
        if p.requires_grad
    )


def test_signal_at_the_cut_changes_the_tokens_after_it(model_folder, tmp_path):  # noqa: F811
    class WithThinkEnd(RecordedPaths):
        """Paths whose thinking ends one third of the way before their end."""

        def path(self, row, batch, i):
            rollout = super().path(row, batch, i)
            end = encode("</think>")
            place = rollout.num_tokens * 2 // 3
            rollout.completion_ids[place : place + len(end)] = end
            rollout.num_tokens = len(rollout.completion_ids)
            rollout.logprobs = [-7.0] * rollout.num_tokens
            return rollout

    engine = WithThinkEnd(correct=(True,), lengths=(60, 18, 60, 18))
    trainer = make_trainer(model_folder, tmp_path, engine, overthinking_loss="max")
    trainer.model.train()
    batch = trainer._generate_and_score_completions([make_rows()[0]] * 2)
    rows = [row["advantage"] for row in records(tmp_path, "step-0")]
    size = max(map(abs, rows))
    values = batch["advantages"]  # (4, C)
    assert values[0, 11].item() == pytest.approx(rows[0]) and values[0, 12].item() == pytest.approx(
        rows[0] - size
    )
    assert values[1, 11].item() == pytest.approx(rows[1]) and values[1, 12].item() == pytest.approx(
        rows[1] + size
    )
