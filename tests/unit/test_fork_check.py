"""Packing is tried at the start: if a model's packed and plain passes differ, rows are padded and
the log says why."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from families import make_model
from packed_paths import group
from tiny import make_tokenizer, save_model
from trainers import RelatedPaths, adapter, make_trainer
from trl.trainer.utils import add_fused_lm_head

from rea_rl.configs import REARLConfig
from rea_rl.packing.fork_check import make_fork
from rea_rl.packing.prefix_tree import add_packed_forward, fold, packed_logps

TARGETS = {
    "gpt_neox": ["query_key_value"],
    "phi3": ["qkv_proj", "down_proj"],
    "deepseek_v3": ["q_b_proj", "o_proj"],
}


def save(folder, family, **changes):
    save_model(folder)  # its tokenizer
    make_model(family, **changes).save_pretrained(folder)
    return folder


def train(tmp_path, family, packing, keys=None, **changes):
    """Adapter and log after steps on paths that share prefixes; the trainer."""
    folder = save(tmp_path / "model", family, **changes)
    trainer = make_trainer(
        folder, tmp_path / packing, RelatedPaths(), packing=packing, per_device_train_batch_size=4,
        targets=TARGETS.get(family, ["q_proj", "v_proj"]), learning_rate=1e-3, **(keys or {}),
    )  # fmt: skip
    trainer.train()
    return adapter(trainer), trainer.state.log_history[:2], trainer


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 9}),
        ("phi3", {}),
        ("gpt_neox", {}),
        ("opt", {"dropout": 0.0}),
        ("gemma3_text", {}),
        ("deepseek_v3", {}),
        ("qwen3_moe", {}),
        ("qwen2_moe", {}),
        ("mixtral", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere2", {"logit_scale": 0.25}),
        ("nanochat", {"num_key_value_heads": 2, "final_logit_softcapping": 2.0}),
    ],
)
def test_families_are_packed_and_take_the_steps_of_padded_rows(tmp_path, family, changes):
    padded, (expected, *_), _ = train(tmp_path, family, "none", {"max_steps": 1}, **changes)
    packed, (logged, *_), trainer = train(
        tmp_path, family, "shared_prefix", {"max_steps": 1}, **changes
    )
    assert trainer.packed_step is not None
    assert logged.keys() == expected.keys()
    for key in ("loss", "grad_norm", "kl", "entropy"):
        assert logged[key] == pytest.approx(expected[key], rel=2e-3, abs=2e-5), key
    for name, weight in padded.items():
        torch.testing.assert_close(packed[name], weight, atol=1e-3, rtol=1e-2, msg=name)


RANDOM = "draws random numbers in training"


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("nemotron", {}, "fails|others when packed"),  # its layers do not hand the tree on
        ("gpt_oss", {}, "sinks"),
        ("gemma2", {}, "caps its attention scores"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers that are not attention"),
        ("qwen2", {"attention_dropout": 0.1}, "drops out attention"),
        ("phi3", {"resid_pdrop": 0.1}, RANDOM),
        ("gpt_neox", {"hidden_dropout": 0.1}, RANDOM),
        ("opt", {"dropout": 0.1}, RANDOM),
        ("phi", {"resid_pdrop": 0.2}, RANDOM),
        ("starcoder2", {"residual_dropout": 0.1}, RANDOM),
        ("mixtral", {"router_jitter_noise": 0.1}, RANDOM),
    ],
)
def test_what_cannot_be_packed_is_padded_and_the_log_says_why(
    tmp_path, caplog, family, changes, why
):
    with caplog.at_level(logging.WARNING):
        _, logged, trainer = train(tmp_path, family, "shared_prefix", {"max_steps": 1}, **changes)
    (line,) = [
        record.getMessage() for record in caplog.records if "rows are padded" in record.getMessage()
    ]
    assert re.search(why, line), line
    assert trainer.packed_step is None and logged[0]["grad_norm"] > 0
    assert (
        trainer.model.config._attn_implementation
        == make_model(family, **changes).config._attn_implementation
    )


@pytest.mark.parametrize("packing", ["none", "shared_prefix"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "mixtral", "qwen2_moe"])
def test_experts_train_with_the_default_of_the_load_balancing_loss(
    tmp_path, caplog, family, packing
):
    with caplog.at_level(logging.INFO):
        weights, logged, _ = train(
            tmp_path, family, packing, {"max_steps": 1}, output_router_logits=True
        )
    assert logged[0]["grad_norm"] > 0 and "aux_loss" not in logged[0]
    assert "router_aux_loss_coef: 0, since an adapter leaves the routers as they are" in caplog.text
    assert any(weight.abs().sum() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_a_load_balancing_loss_that_is_asked_for_is_trained_with_padded_rows(tmp_path):
    losses = {}
    for coefficient in (0.0, 0.5):
        keys = {"max_steps": 1, "router_aux_loss_coef": coefficient, "rows_per_forward": 3}
        _, logged, _ = train(tmp_path, "qwen3_moe", "none", keys)
        losses[coefficient] = logged[0]
    assert losses[0.5]["loss"] == pytest.approx(
        losses[0.0]["loss"] + 0.5 * losses[0.5]["aux_loss"], abs=1e-5
    )
    with pytest.raises(
        ValueError, match="router_aux_loss_coef is 0.5; with packing: shared_prefix"
    ):
        REARLConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=2,
            reflection_model="x",
            tokens_per_reflection=1.0, packing="shared_prefix", router_aux_loss_coef=0.5,
        )  # fmt: skip


def test_the_fork_is_one():
    first, second, third = make_fork(make_tokenizer())
    assert np.array_equal(first.ids[:20], second.ids[:20]) and not np.array_equal(
        first.ids[:21], second.ids[:21]
    )
    assert np.array_equal(first.ids[:8], third.ids[:8])
    assert {path.num_prompt for path in (first, second, third)} == {8}
    assert (
        fold([first, second, third]).input_ids.numel()
        < sum(len(path.ids) for path in (first, second, third)) - 20
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("family", "changes"), [("qwen2", {}), ("mistral", {"sliding_window": 5}), ("gemma3_text", {})]
)
def test_plain_forwards_of_a_packed_model_are_those_from_before(family, changes, attention):
    """With and without a mask of either side, labels, a cache, and in the same pass as packed
    ones."""
    plain, packed_model = make_model(family, **changes), make_model(family, **changes)
    for model in (plain, packed_model):
        model.set_attn_implementation(attention)
    add_fused_lm_head(packed_model)
    take_away = add_packed_forward(packed_model)
    ids = torch.randint(1, 90, (3, 12), generator=torch.Generator().manual_seed(0))
    left = torch.ones_like(ids)
    left[0, :4] = 0
    for arguments in (
        {},
        {"attention_mask": torch.ones_like(ids)},
        {"attention_mask": left},
        {"attention_mask": left.flip(1), "labels": ids},
    ):
        mask = arguments.get("attention_mask", torch.ones_like(ids)).bool()
        ours, theirs = (
            model(input_ids=ids, **arguments).logits[mask] for model in (packed_model, plain)
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        packed_logps(packed_model, fold(group(pairs=1)))
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generated = [
        model.generate(ids[:, :6], attention_mask=left[:, :6], **settings)
        for model in (packed_model, plain)
    ]
    assert torch.equal(*generated)
    take_away()
    assert packed_model.config._attn_implementation == attention
    assert not packed_model.base_model._forward_hooks
