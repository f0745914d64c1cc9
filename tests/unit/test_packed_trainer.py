"""REARLTrainer with packing: shared_prefix takes the steps that it takes with padded rows."""

from __future__ import annotations

import logging

import pytest
import torch
from families import make_model
from tiny import save_model
from trainers import RelatedPaths, adapter, make_trainer
from transformers import AutoConfig, AutoModelForCausalLM

from rea_rl.configs import REARLConfig
from rea_rl.grpo import load_inputs, parse_recipe
from rea_rl.packing.prefix_tree import packed_logps


def run(folder, output_dir, **changes):
    """Adapter and logged metrics of three steps on recorded paths with every kind of outcome."""
    engine = RelatedPaths(
        correct=(True, True, False, True, True), lengths=(40, 12, 30, 9, 25, 7, 33)
    )
    keys = {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "gradient_checkpointing": True,
    }
    trainer = make_trainer(folder, output_dir, engine, **{**keys, **changes})
    trainer.train()
    return trainer, adapter(trainer), trainer.state.log_history[:3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokens_per_forward": 100},  # several forward passes a micro-batch
        {
            "tokens_per_forward": 60,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
        },
        {"beta": 0.0, "loss_type": "cispo", "gradient_checkpointing": False},
    ],
)
def test_steps_are_those_of_padded_rows(model_folder, tmp_path, changes):
    rest = {key: value for key, value in changes.items() if key != "tokens_per_forward"}
    _, padded, expected = run(model_folder, tmp_path / "none", **rest)
    trainer, packed, logged = run(
        model_folder, tmp_path / "packed", packing="shared_prefix", **changes
    )
    assert trainer.packed_step is not None
    for name, value in padded.items():
        torch.testing.assert_close(packed[name], value, atol=2e-5, rtol=2e-4, msg=name)
    times = ("runtime", "time", "timing", "per_second", "share/")
    for ours, theirs in zip(logged, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            # With accumulation, the mean over micro-batches depends on which rows they have.
            means = "gradient_accumulation_steps" in changes and key.startswith(
                ("entropy", "kl", "sampling/")
            )
            if not any(word in key for word in times):
                assert ours[key] == pytest.approx(
                    theirs[key], rel=0.1 if means else 2e-3, abs=2e-5
                ), key


@pytest.mark.parametrize("changes", [{}, {"tokens_per_forward": 100}, {"beta": 0.0}])
@pytest.mark.parametrize("tied", [False, True])
def test_all_weights_get_the_gradients_of_padded_rows(tied, tmp_path, monkeypatch, changes):
    """Full fine-tuning: embeddings and head among them, also a head that is the embeddings."""
    config = AutoConfig.from_pretrained(save_model(tmp_path / "model"), tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    gradients = {}
    for packing in ("none", "shared_prefix"):
        trainer = make_trainer(
            tmp_path / "model", tmp_path / packing, RelatedPaths(), targets=(), packing=packing,
            per_device_train_batch_size=8, max_steps=1, max_grad_norm=0.0, **changes,
        )  # fmt: skip
        assert (trainer.packed_step is None) == (packing == "none"), trainer.padded_because
        step, found = trainer.create_optimizer, gradients.setdefault(packing, {})

        def watched(trainer=trainer, step=step, found=found):
            optimizer = step()
            optimizer.register_step_pre_hook(
                lambda *_: found.update(
                    {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
                )
            )
            return optimizer

        monkeypatch.setattr(trainer, "create_optimizer", watched)
        trainer.train()
    names = {name for name, _ in model.named_parameters()}
    assert gradients["none"].keys() == gradients["shared_prefix"].keys() == names
    assert ("lm_head.weight" in names) != tied
    for name, value in gradients["none"].items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(
            gradients["shared_prefix"][name], value, atol=2e-6, rtol=1e-3, msg=name
        )


def test_trained_routers_keep_their_loss_and_padded_rows(tmp_path):
    """Full fine-tuning of a model with experts, whose config has the coefficient."""
    make_model("qwen3_moe", router_aux_loss_coef=0.1).save_pretrained(tmp_path / "model")
    for coefficient, is_packed in ((None, False), (0.0, True)):
        trainer = make_trainer(
            tmp_path / "model", tmp_path / str(coefficient), RelatedPaths(), targets=(),
            packing="shared_prefix", router_aux_loss_coef=coefficient, max_steps=1,
        )  # fmt: skip
        assert (trainer.packed_step is not None) == is_packed, trainer.padded_because
        trainer.train()
        assert ("aux_loss" in trainer.state.log_history[0]) != is_packed
    assert "routers" in make_trainer(
        tmp_path / "model", tmp_path / "again", targets=(), packing="shared_prefix"
    ).padded_because  # fmt: skip


def test_reference_pass_shares_too_and_no_other_pass_is_made(model_folder, tmp_path, monkeypatch):
    trainer = make_trainer(
        model_folder,
        tmp_path,
        RelatedPaths(),
        packing="shared_prefix",
        per_device_train_batch_size=4,
        max_steps=1,
    )
    calls = []

    def forward(model, packed):
        calls.append((torch.is_grad_enabled(), packed.input_ids.numel(), len(packed.token_index)))
        return packed_logps(model, packed)

    monkeypatch.setattr("rea_rl.packing.step.packed_logps", forward)
    trainer.train()
    # one pass each: KL to the base model, and the loss
    (reference, tokens, trained), training = calls
    assert (reference, training) == (False, (True, tokens, trained))
    assert tokens < trained


def test_passes_that_train_nothing_change_nothing(model_folder, tmp_path, monkeypatch):
    """A rank with fewer passes than another does empty ones first."""

    def trained(folder, extra):
        trainer = make_trainer(
            model_folder, tmp_path / folder, RelatedPaths(), packing="shared_prefix",
            per_device_train_batch_size=4, tokens_per_forward=80, max_steps=1,
        )  # fmt: skip
        same = trainer.packed_step._same_on_all_ranks
        monkeypatch.setattr(
            trainer.packed_step,
            "_same_on_all_ranks",
            lambda packs: (
                [([], 2)] * extra + [(rows, total + extra) for rows, total in same(packs)]
            ),
        )
        passes = []
        compute = trainer._compute_loss
        monkeypatch.setattr(
            trainer,
            "_compute_loss",
            lambda m, inputs: (
                passes.append(int(inputs["completion_mask"].sum())) or compute(m, inputs)
            ),
        )
        trainer.train()
        return passes, adapter(trainer), trainer.state.log_history[0]

    passes, expected, metrics = trained("own", 0)
    more, weights, logged = trained("more", 2)
    assert len(passes) > 1 and more == [0, 0, *passes]
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, msg=name)
    for key in (
        "loss",
        "kl",
        "entropy",
        "clip_ratio/low_min",
        "sampling/ratio",
        "sampling/logp_difference",
        "grad_norm",
    ):
        assert logged[key] == pytest.approx(metrics[key], rel=1e-5), key


def test_model_that_cannot_be_packed_is_trained_with_padding(
    model_folder, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("rea_rl.packing.step.unsupported", lambda model: "its attention has sinks")
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(model_folder, tmp_path, packing="shared_prefix", max_steps=1)
    assert "because its attention has sinks; rows are padded" in caplog.text
    trainer.train()
    assert trainer.packed_step is None and trainer.state.log_history[0]["grad_norm"] > 0


def test_dropout_and_losses_that_do_not_add_up_are_refused(tmp_path):
    keys = {
        "output_dir": str(tmp_path),
        "reflection_model": "x",
        "tokens_per_reflection": 1.0,
        "use_cpu": True,
    }
    for wrong, message in (
        ({"packing": "tree"}, "packing is 'tree'; .*'none' or 'shared_prefix'"),
        (
            {"packing": "shared_prefix", "loss_type": "bnpo"},
            "loss_type is 'bnpo'; with packing: shared_prefix",
        ),
        ({"recompute": "some"}, "recompute is 'some'"),
    ):
        with pytest.raises(ValueError, match=message):
            REARLConfig(**keys, bf16=False, num_generations=2, **wrong)
    recipe = "recipes/miniature/config_GRPO.yaml"
    parsed = parse_recipe(
        ["--config", recipe, "--packing", "shared_prefix", "--lora_dropout", "0.05"]
    )
    with pytest.raises(
        ValueError, match="lora_dropout is 0.05, .* set lora_dropout: 0, or packing: none"
    ):
        load_inputs(*parsed)
