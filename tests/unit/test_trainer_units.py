"""REARLTrainer on a tiny model with recorded paths: rows, advantages, correction and order,
without a server."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from scripted_server import ScriptedServer
from trainers import (
    REWARDS,
    TOKENIZER,
    RecordedPaths,
    adapter,
    make_rows,
    make_trainer,
    records,
)
from transformers import AutoModelForCausalLM

from rea_rl.configs import REARLConfig
from rea_rl.packing.logprobs import padded_logps, takes_one_pass
from rea_rl.rollout.weight_sync import AdapterSync
from rea_rl.trl_trainer import GRPOTrainer


def test_two_steps_train_and_log_finite_numbers(model_folder, tmp_path):
    trainer = make_trainer(model_folder, tmp_path)
    before = adapter(trainer)
    trainer.train()
    assert all(not torch.equal(before[name], p) for name, p in adapter(trainer).items())
    first, second = trainer.state.log_history[:2]
    for key, value in {**first, **second}.items():
        assert math.isfinite(value), key
    expected = {
        "rollout/accuracy",
        "revision/success",
        "reflection/density",
        "timing/rollout",
        "timing/weight_sync",
    }
    assert (
        expected | {"sampling/ratio", "sampling/logp_difference", "verifier/pairs", "kl"}
        <= first.keys()
    )
    parts = sum(value for key, value in first.items() if key.startswith("timing/longest_"))
    assert parts == pytest.approx(first["timing/rollout"], abs=1e-4)
    assert trainer.weight_sync.steps == [0, 1]  # once before each set of rollouts


def test_groups_and_advantages_by_hand(model_folder, tmp_path):
    # One prompt, G = 2: original right (40), revision right (12); original wrong, its revision
    # right (9).
    engine = RecordedPaths(correct=(True, True, False, True), lengths=(40, 12, 30, 9))
    make_trainer(model_folder, tmp_path, engine, max_steps=1).train()
    rows = records(tmp_path, "step-0")
    assert [row["kind"] for row in rows] == ["original", "revision"] * 2
    assert [row["kept"] for row in rows] == [True] * 4
    # refine_length: 9 -> 0.5, 40 -> -0.5, 12 between, wrong -0.5.
    totals = torch.tensor([1 - 0.5, 1 + 0.5 - 3 / 31, -0.5, 1.5])
    assert [sum(row["rewards"].values()) for row in rows] == pytest.approx(totals.tolist())
    advantages = (totals - totals.mean()) / (totals.std() + 1e-4)
    assert [row["advantage"] for row in rows] == pytest.approx(advantages.tolist(), abs=1e-5)


def test_wrong_revision_is_replaced_in_the_batch(model_folder, tmp_path):
    trainer = make_trainer(
        model_folder, tmp_path, RecordedPaths(correct=(True, False, False, True))
    )
    trainer.model.train()
    batch = trainer._generate_and_score_completions([make_rows()[0]] * 2)
    rows = records(tmp_path, "step-0")
    assert [row["kept"] for row in rows] == [True, False, True, True]
    expected = [rows[0], rows[0], rows[2], rows[3]]
    for i, row in enumerate(expected):
        mask = batch["completion_mask"][i].bool()
        assert batch["completion_ids"][i][mask].tolist() == row["completion_ids"]
    assert rows[1]["advantage"] == rows[0]["advantage"] and rows[1]["rewards"] == rows[0]["rewards"]


def test_group_without_a_right_answer_learns_nothing_and_stays_finite(model_folder, tmp_path):
    for scale in ("group", "none"):
        trainer = make_trainer(
            model_folder,
            tmp_path / scale,
            RecordedPaths(correct=(False,)),
            max_steps=1,
            beta=0.0,
            scale_rewards=scale,
        )
        before = adapter(trainer)
        trainer.train()
        assert {row["advantage"] for row in records(tmp_path / scale, "step-0")} == {0.0}
        assert all(torch.equal(before[name], p) for name, p in adapter(trainer).items())
        assert all(math.isfinite(value) for value in trainer.state.log_history[0].values())


@pytest.mark.parametrize("packing", ["none", "shared_prefix"])
@pytest.mark.parametrize("empty", [(0, 1), (0, 1, 2, 3)], ids=["one path", "all paths"])
def test_empty_completions_stay_finite(model_folder, tmp_path, packing, empty):
    class Empty(RecordedPaths):
        def path(self, row, batch, i):
            path = super().path(row, batch, i)
            if i in empty:
                path.completion_ids, path.logprobs, path.num_tokens = (
                    [TOKENIZER.eos_token_id],
                    [-0.5],
                    1,
                )
                path.kind, path.correct, path.num_think_tokens, path.num_reflections = (
                    "original",
                    False,
                    1 if i else 0,
                    0,
                )
            return path

    trainer = make_trainer(
        model_folder,
        tmp_path,
        Empty(),
        rewards=(*REWARDS, "reflect"),
        packing=packing,
        tokens_per_forward=60,
    )
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        assert all(math.isfinite(value) for value in entry.values())
    assert all(p.isfinite().all() for p in adapter(trainer).values())
    assert [len(row["completion_ids"]) == 1 for row in records(tmp_path, "step-1")] == [
        i in empty for i in range(4)
    ]


def test_order_of_rewards_does_not_matter(model_folder, tmp_path):
    def advantages(names):
        folder = tmp_path / "-".join(names)
        make_trainer(model_folder, folder, rewards=names, max_steps=1).train()
        return [row["advantage"] for row in records(folder, "step-0")]

    names = ["accuracy", "refine_length", "reflect"]
    assert advantages(names) == pytest.approx(advantages(names[::-1]), abs=1e-6)


def test_gradient_is_that_of_trl_with_its_extra_pass(model_folder, tmp_path):
    """Correction by the loss's own log-probs equals TRL's token_truncate with a separate pass
    for the old ones."""

    class Reference(GRPOTrainer):
        """TRL's own way, with the same paths."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.use_vllm, self._last_loaded_step, self.num_generations = True, 0, 4
            self.rollout_func = lambda prompts, trainer: columns

        def _get_train_sampler(self, dataset=None):
            return [0, 0]

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(
                [dict(row) for row in inputs for _ in range(2)]
            )
            assert (
                "old_per_token_logps" in output and output["importance_sampling_ratio"].max() == 2.0
            )
            return output

    # All right: TRL's advantages are ours.
    engine = RecordedPaths(correct=(True,), lengths=(40, 12, 30, 9))
    ours = make_trainer(model_folder, tmp_path / "ours", engine, max_steps=1, rows_per_forward=3)
    ours.train()
    rows = records(tmp_path / "ours", "step-0")
    names = ("prompt_ids", "completion_ids", "logprobs", "problem_id", "correct", "num_tokens")
    columns = {
        name: [row[name] for row in rows]
        for name in (*names, "num_think_tokens", "num_reflections")
    }
    reference = make_trainer(model_folder, tmp_path / "trl", cls=Reference, max_steps=1)
    reference.train()
    for key in ("loss", "grad_norm", "kl"):
        assert ours.state.log_history[0][key] == pytest.approx(
            reference.state.log_history[0][key], rel=1e-4, abs=1e-7
        )
    for (name, mine), theirs in zip(
        adapter(ours).items(), adapter(reference).values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, msg=name)


@pytest.mark.parametrize("rows_per_forward", [1, 3, 8])
def test_log_probs_do_not_depend_on_how_rows_are_forwarded(
    model_folder, tmp_path, rows_per_forward
):
    trainer = make_trainer(model_folder, tmp_path, RecordedPaths(lengths=(40, 12, 30, 9, 3, 22)))
    trainer.model.train()
    batch = trainer._generate_and_score_completions(
        [row for row in make_rows()[2:6] for _ in range(2)]
    )
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    whole, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
        trainer, trainer.model, ids, mask, batch["completion_ids"].size(1)
    )
    trainer.args.rows_per_forward = rows_per_forward
    parts, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, batch["completion_ids"].size(1), compute_entropy=True
    )
    assert entropies.shape == parts.shape == whole.shape
    torch.testing.assert_close(parts, whole * batch["completion_mask"], atol=1e-5, rtol=1e-5)


def test_forced_tokens_are_neutral_and_others_truncated(model_folder, tmp_path):
    trainer = make_trainer(model_folder, tmp_path)
    inputs = {
        "advantages": torch.tensor([2.0, -1.0]),
        "sampling_per_token_logps": torch.tensor([[-1.0, float("nan"), -9.0], [-1.0, -2.0, 0.0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    logps = torch.tensor([[-1.0, -7.0, -1.0], [-1.5, -2.0, 0.0]])
    trainer._correct_for_sampler(inputs, logps)
    # Ratios 1, neutral, e^8 cut to 2; e^-0.5, 1, padding.
    expected = torch.tensor([[2.0, 2.0, 4.0], [-math.exp(-0.5), -1.0, -1.0]])
    torch.testing.assert_close(inputs["advantages"], expected)
    logged = trainer._metrics["train"]
    assert logged["sampling/logp_difference"] == pytest.approx([(0 + 8 + 0.5 + 0) / 4])
    assert logged["sampling/ratio"] == pytest.approx([(1 + math.exp(8) + math.exp(-0.5) + 1) / 4])
    assert logged["sampling/truncated"] == [1 / 5]  # of the trained tokens
    assert logged["sampling/ratio_max"] == pytest.approx([math.exp(8)])


def test_evaluation_samples_without_revision(model_folder, tmp_path):
    engine = RecordedPaths(correct=(True, False), lengths=(20, 40))
    trainer = make_trainer(model_folder, tmp_path, engine, num_generations_eval=2)
    metrics = trainer.evaluate()
    (batch, problems) = engine.batches[0]
    assert batch.revision is False
    assert problems == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert metrics["eval_rollout/accuracy"] == 0.5
    assert metrics["eval_rollout/num_tokens"] == 30
    assert not [key for key in metrics if "revision" in key]
    assert trainer.state.log_history[-1]["eval_rollout/accuracy"] == 0.5
    assert len(records(tmp_path, "eval-0")) == 6
    assert trainer.weight_sync.steps == [0]


def test_evaluation_does_not_change_the_training_order(model_folder, tmp_path):
    def trained(**changes):
        engine = RecordedPaths()
        make_trainer(
            model_folder, tmp_path / str(len(changes)), engine, max_steps=3, **changes
        ).train()
        return [problems for batch, problems in engine.batches if batch.revision]

    assert trained() == trained(eval_strategy="steps", eval_steps=1)


def test_resumed_run_continues_the_order_of_batches(model_folder, tmp_path):
    def order(folder, resume=None, **changes):
        engine = RecordedPaths()
        trainer = make_trainer(
            model_folder, folder, engine, save_strategy="steps", save_steps=1, **changes
        )
        trainer.train(resume_from_checkpoint=resume)
        return [(batch.step, problems) for batch, problems in engine.batches], trainer

    # 8 prompts, one a step: step 8 begins the second epoch with an order of its own, step 10 is
    # inside it.
    whole, _ = order(tmp_path / "whole", max_steps=12)
    assert sorted(problems[0] for _, problems in whole[:8]) == [f"p{i}" for i in range(8)]
    assert [problems for _, problems in whole[8:]] != [problems for _, problems in whole[:4]]
    for stop in (3, 8, 10):
        part, _ = order(tmp_path / f"part{stop}", max_steps=stop, lr_scheduler_type="constant")
        rest, trainer = order(
            tmp_path / f"part{stop}",
            resume=str(tmp_path / f"part{stop}" / f"checkpoint-{stop}"),
            max_steps=12,
        )
        assert part + rest == whole
        # the resumed adapter is on the server before the first sample
        assert trainer.weight_sync.steps[0] == stop


def test_a_run_that_is_complete_trains_nothing_more(model_folder, tmp_path):
    """It was stopped after its last checkpoint, in the middle of an epoch."""
    settings = {
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
    }
    first = make_trainer(model_folder, tmp_path, **settings)
    first.train()
    engine = RecordedPaths()
    again = make_trainer(model_folder, tmp_path, engine, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert engine.batches == [] and again.state.global_step == 3
    assert all(torch.equal(adapter(first)[name], p) for name, p in adapter(again).items())


@pytest.mark.parametrize("rows_per_forward", [1, 2, 4])
def test_rows_without_a_trained_token_are_forwarded_too(rows_per_forward):
    def forward(ids, mask, num_kept):  # as TRL does it: the last 0 columns are all of them
        return ids[:, -num_kept:].float(), None, None

    ids = torch.arange(1, 29).view(4, 7)
    mask = torch.ones_like(ids)
    mask[:2, 3:] = 0  # dynamic sampling took their four completion tokens
    mask[2, 5:] = 0
    logps, _, _ = padded_logps(forward, ids, mask, 4, rows_per_forward)
    assert logps.shape == (4, 4)
    trained = mask[:, 3:].bool()
    assert torch.equal(logps[trained], ids[:, 3:][trained].float())


@pytest.mark.parametrize(
    ("checkpointing", "kwargs", "expected"),
    [
        (True, None, False),
        (True, {"use_reentrant": False}, False),
        (True, {"use_reentrant": True}, True),
    ]
    + [(True, {"preserve_rng_state": False}, True), (False, {"use_reentrant": True}, False)],
)
def test_reentrant_checkpointing_takes_one_pass(tmp_path, caplog, checkpointing, kwargs, expected):
    args = REARLConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to="none", reflection_model="x",
        tokens_per_reflection=9.0,
        gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs=kwargs,
        rows_per_forward=1, num_generations=2,
    )  # fmt: skip
    assert takes_one_pass(args) is expected
    assert ("rows_per_forward: 1 is not possible" in caplog.text) is expected


def test_group_is_2g_rows_and_the_sampler_deals_g(model_folder, tmp_path):
    trainer = make_trainer(
        model_folder, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert trainer.num_generations == 4
    order = list(trainer._get_train_sampler())
    # full batches of 4 prompts, 2 rows each, dealt once per micro-step
    assert len(order) == 8 // 4 * 4 * 2 * 2
    assert order[:8:2] == order[1:8:2] and len(set(order[:8])) == 4
    plain = make_trainer(model_folder, tmp_path, revision=False, reflection_model=None)
    assert plain.num_generations == 2


def make_adapter(folder, fill=0.5):
    model = PeftModel(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    for p in model.parameters():
        if p.requires_grad:
            p.data.fill_(fill)
    return model


def test_weight_sync_swaps_versions(model_folder, tmp_path):
    with ScriptedServer(None, ["base", "policy-3-abcdef-01234567"]) as server:
        sync = AdapterSync(server.url, tmp_path / "adapters")
        model = make_adapter(model_folder)
        first = sync.publish(model, 0)
        assert first.startswith("policy-0-")
        assert server.models == ["base", "policy-3-abcdef-01234567", first]  # another run's stays
        server.models.remove("policy-3-abcdef-01234567")
        assert server.bodies("load_lora_adapter") == [
            {"lora_name": first, "lora_path": str(tmp_path / "adapters" / first)}
        ]
        weights = load_file(tmp_path / "adapters" / first / "adapter_model.safetensors")
        assert weights and all((w == 0.5).all() for w in weights.values())

        second = sync.publish(make_adapter(model_folder, fill=0.25), 1)
        assert server.models == ["base", second]
        assert [path.name for path in (tmp_path / "adapters").iterdir()] == [second]
        third = sync.publish(make_adapter(model_folder, fill=0.125), 2, {second})
        assert server.models == ["base", second, third]
        assert {path.name for path in (tmp_path / "adapters").iterdir()} == {second, third}
        fourth = sync.publish(make_adapter(model_folder, fill=0.1), 3, {third})
        assert server.models == ["base", third, fourth]
        # Loaded before the old one goes, so that no request finds neither.
        assert [path.rsplit("/", 1)[1] for path, _ in server.requests[-2:]] == [
            "load_lora_adapter",
            "unload_lora_adapter",
        ]


def test_a_version_is_an_adapter_that_peft_reads(model_folder, tmp_path):
    model = make_adapter(model_folder)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    with ScriptedServer(None, ["base"]) as server:
        version = AdapterSync(server.url, tmp_path).publish(model, 0)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    read = dict(PeftModel.from_pretrained(base, tmp_path / version).named_parameters())
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 4  # A and B of two layers
    for name, weight in trained.items():
        torch.testing.assert_close(read[name].data, weight.data, rtol=0, atol=0)


def test_a_name_stands_for_one_set_of_weights(model_folder, tmp_path):
    with ScriptedServer(None, ["base"]) as server:
        sync = AdapterSync(server.url, tmp_path)
        first = sync.publish(make_adapter(model_folder), 4)
        assert sync.publish(make_adapter(model_folder), 4) == first
        assert len(server.bodies("load_lora_adapter")) == 1
        # A run resumed from an earlier step gets to step 4 again, with other weights.
        assert sync.publish(make_adapter(model_folder, fill=0.1), 4) != first


def test_refused_adapter_is_an_error_with_the_servers_words(tmp_path, model_folder, monkeypatch):
    with ScriptedServer(None, ["base"]) as server:
        sync = AdapterSync(server.url, tmp_path)
        monkeypatch.setattr(sync, "_save", lambda model, step: "refused")
        with pytest.raises(
            ConnectionError, match="rank 32 is greater than max_lora_rank 16.*at least lora_r"
        ):
            sync.publish(make_adapter(model_folder), 0)
