"""Packed paths give the log-probs, losses and gradients of separate rows; layout and plan by
hand."""

from __future__ import annotations

import importlib.util
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import make_model as make_random
from packed_paths import group
from peft import LoraConfig, get_peft_model
from tiny import save_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from rea_rl.packing import attention as tree_attention
from rea_rl.packing.fused_lora import fuse_layers
from rea_rl.packing.prefix_tree import (
    TokenPath,
    add_packed_forward,
    fold,
    num_unique,
    packed_logps,
    plan,
    unsupported,
)
from rea_rl.packing.recompute import Recompute
from rea_rl.packing.step import merge_metrics, relatives_together

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def path(ids, num_prompt=2):
    return TokenPath(np.array(ids), num_prompt)


# --- Layout ---------------------------------------------------------------------------------------


def test_original_and_revision_by_hand():
    packed = fold([path([1, 2, 3, 4, 5]), path([1, 2, 3, 8])])
    # The tree forks one token before the paths differ, so that each position has one next token: 3
    # stands twice.
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 3, 8]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    # Trained: 3 4 5 of the original, 3 8 of the revision; both 3 are predicted by position 1.
    assert packed.predictors.tolist() == [1, 2, 3, 5]
    assert packed.targets.tolist() == [3, 4, 5, 8]
    assert packed.token_index.tolist() == [0, 1, 2, 0, 3]
    # One run for the original with itself as keys, one for the rest of the revision with the prefix
    # before it.
    assert packed.tree.bounds == ((0, 0), (5, 5), (7, 9))
    assert packed.tree.kv_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6]
    assert packed.tree.max_lengths == (5, 5)


def test_path_that_ends_inside_another_and_unrelated_paths():
    packed = fold([path([1, 2, 3]), path([1, 2, 3, 4]), path([7, 8, 9])])
    assert packed.input_ids.tolist() == [[1, 2, 3, 3, 4, 7, 8, 9]]
    assert packed.tree.bounds == ((0, 0), (3, 3), (5, 7), (8, 10))
    assert packed.tree.kv_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]


def test_prompt_alone_trains_nothing():
    packed = fold([path([1, 2])])
    assert packed.targets.tolist() == packed.token_index.tolist() == []


def test_plan_keeps_relatives_together_within_the_budget():
    paths = [
        path([5, 6, 7, 8]),
        path([1, 2, 3, 4]),
        path([5, 6, 7, 9]),
        path([1, 2, 3, 5, 6]),
        path([0] * 20),
    ]
    assert plan(paths, None) == [[0, 1, 2, 3, 4]]
    # In the order of ids: 4 (20 tokens, alone); 1 and 3 (4 + 2 more); 0 and 2 (4 + 1 more).
    assert plan(paths, 11) == [[4], [0, 1, 2, 3]]
    assert plan(paths, 10) == [[4], [1, 3], [0, 2]]  # 0 would fit with 1 and 3, but 2 belongs to it
    assert plan(paths, 4) == [[4], [1], [3], [0], [2]]


def test_unique_tokens_are_those_of_the_tree():
    assert num_unique([path([1, 2, 3, 4, 5]), path([9, 9]), path([1, 2, 3, 8])]) == 5 + 2 + 1
    paths = group()
    forks = 5  # three pairs and a path twice; the tree has one token of each fork twice
    assert num_unique(paths) <= fold(paths).input_ids.numel() <= num_unique(paths) + forks


# --- Attention ------------------------------------------------------------------------------------


def emulated_varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window):
    """What FlashAttention computes from these arrays: causal masks aligned at the bottom right."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and window[1] == 0
    assert max_q == cu_q.diff().max() and max_k == cu_k.diff().max()
    out = []
    for i in range(len(cu_q) - 1):
        q, k, v = (
            query[cu_q[i] : cu_q[i + 1]],
            key[cu_k[i] : cu_k[i + 1]],
            value[cu_k[i] : cu_k[i + 1]],
        )
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        last = torch.arange(len(q))[:, None] + len(k) - len(q)  # last visible key of each query
        keys = torch.arange(len(k))
        hidden = (keys > last) | ((window[0] >= 0) & (keys < last - window[0]))
        out.append(
            torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        )
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 7])
def test_reference_and_kernel_are_dense_attention_over_each_path(monkeypatch, window):
    packed = fold(group())
    size = packed.input_ids.numel()
    torch.manual_seed(0)
    query, key, value = torch.randn(size, 4, 8), torch.randn(size, 2, 8), torch.randn(size, 2, 8)
    visible = torch.zeros(size, size, dtype=torch.bool)
    for nodes in ancestors(packed):
        visible[nodes[-1], nodes if window is None else nodes[-window:]] = True
    dense = F.scaled_dot_product_attention(
        *(
            x.transpose(0, 1)
            for x in (query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1))
        ),
        attn_mask=visible,
    ).transpose(0, 1)
    monkeypatch.setattr(tree_attention, "_varlen_kernel", lambda: emulated_varlen)
    gathered = key[packed.tree.kv_index], value[packed.tree.kv_index]
    for attend in (tree_attention.attend_run_by_run, tree_attention.attend_varlen):
        torch.testing.assert_close(attend(query, *gathered, packed.tree, 8**-0.5, window), dense)


def ancestors(packed):
    """For each position, its path from the root: the last earlier position of each depth, in
    pre-order."""
    chain = []
    for position, depth in enumerate(packed.position_ids[0].tolist()):
        chain = [*chain[:depth], position]
        yield chain


def test_gradient_of_a_shared_key_is_summed_before_it_is_rounded():
    rows = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    tree_attention._GatherRows.apply(rows, torch.zeros(300, dtype=torch.long)).sum().backward()
    assert rows.grad.item() == 300  # bf16 alone stops at 256


def test_torch_kernel_is_called_with_what_its_version_knows(monkeypatch):
    calls = []

    def old(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        return_aux=None,
        scale=None,
        window_size=(-1, -1),
    ):
        calls.append((scale, window_size))

    def new(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
    ):
        calls.append((scale, window_size, enable_gqa))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for function in (old, new):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
        tree_attention._varlen_kernel.cache_clear()
        tree_attention._varlen_kernel()(*[None] * 7, scale=0.5, window=(-1, 0))
    tree_attention._varlen_kernel.cache_clear()
    assert calls == [(0.5, (-1, 0)), (0.5, (-1, 0), True)]


# --- Log-probs and gradients ----------------------------------------------------------------------


def take_packed_rows(model, temperature=1.0):
    """With TRL's head, which a trainer has put on its model already."""
    add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy"))
    add_packed_forward(model)


HEADS = {
    "qwen2": {},
    "qwen2, tied": {"tie_word_embeddings": True},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "gemma2": {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "nanochat": {"num_key_value_heads": 2, "final_logit_softcapping": 2.0},
    "phi": {"num_key_value_heads": 2},  # its head has a bias
}


@pytest.mark.parametrize("name", HEADS)
def test_log_probs_entropies_and_all_gradients_are_those_of_log_softmax(name):
    """Heads that scale, cap or shift their logits too; every weight is trained, the head's too."""
    plain, packed_model = (make_random(name.partition(",")[0], **HEADS[name]) for _ in range(2))
    for model in (plain, packed_model):
        if (bias := model.get_output_embeddings().bias) is not None:
            torch.nn.init.normal_(bias)
    packed_model.load_state_dict(plain.state_dict())
    paths = group()
    factors = torch.randn(sum(len(p.ids) - p.num_prompt for p in paths))
    expected = row_by_row(plain, paths, factors, 0.7)
    assert unsupported(packed_model) is None
    take_packed_rows(packed_model, 0.7)
    packed = fold(paths)
    logps, entropies = packed_logps(packed_model, packed)
    assert logps.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logps[packed.token_index], expected, atol=1e-5, rtol=1e-5)
    ids = torch.from_numpy(paths[0].ids)
    log_probs = (plain(input_ids=ids[None]).logits[0] / 0.7).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)[paths[0].num_prompt - 1 : -1]
    mine = entropies[packed.token_index][: len(entropy)]
    torch.testing.assert_close(mine, entropy, atol=1e-5, rtol=1e-5)
    (logps[packed.token_index] * factors).sum().backward()
    for weight, gradient in gradients(plain).items():
        torch.testing.assert_close(
            gradients(packed_model)[weight], gradient, atol=1e-4, rtol=1e-3, msg=weight
        )


def test_the_head_sees_hidden_states_of_predictors_only():
    model = make_random("qwen2")
    take_packed_rows(model)
    shapes = []
    model.base_model.register_forward_hook(
        lambda _module, _args, output: shapes.append(output.last_hidden_state.size(1))
    )
    packed = fold(group())
    assert len(packed_logps(model, packed)[0]) == len(packed.targets) < packed.input_ids.numel()
    (nothing, _) = packed_logps(model, fold([path([1, 2])]))
    assert shapes == [len(packed.targets), 0] and nothing.shape == (0,)
    nothing.sum().backward()  # of a rank whose pass trains nothing
    assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)


def test_a_trained_head_under_autocast_has_gradients_in_its_own_type():
    """The product is in autocast's type, log-probs and the weight's gradient in float32."""
    plain, half = make_random("qwen2"), make_random("qwen2")
    paths = group()
    factors = torch.randn(sum(len(p.ids) - p.num_prompt for p in paths))
    row_by_row(plain, paths, factors, 1.0)
    take_packed_rows(half)
    packed = fold(paths)
    with torch.autocast("cpu", torch.bfloat16):
        logps, _ = packed_logps(half, packed)
    assert logps.dtype == torch.float32
    (logps[packed.token_index] * factors).sum().backward()
    ours, theirs = (model.get_output_embeddings().weight.grad for model in (half, plain))
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def make_model(folder, targets=tuple(LINEAR_LAYERS), dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    lora = LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False)
    return get_peft_model(model, lora).train()


def row_by_row(model, paths, factors, temperature):
    """Log-probs of each path's completion, each path alone through the plain model; gradients of
    their sum."""
    result = []
    for one in paths:
        ids = torch.from_numpy(one.ids)
        logits = model(input_ids=ids[None]).logits[0, :-1].float() / temperature
        result.append(logits.log_softmax(-1).gather(1, ids[1:, None])[one.num_prompt - 1 :, 0])
    (torch.cat(result) * factors).sum().backward()
    return torch.cat(result).detach()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["all", "none"])
def test_packed_forward_is_the_models_own(folder, mode):
    paths = group() + group(seed=1, pairs=2)
    factors = torch.randn(sum(len(p.ids) - p.num_prompt for p in paths))
    plain, packed_model = make_model(folder), make_model(folder)
    expected = row_by_row(plain, paths, factors, 0.7)
    take_packed_rows(packed_model.get_base_model(), 0.7)
    # layers: linear, norms, MLP; and the last norm
    assert fuse_layers(packed_model) == 2 * (7 + 2 + 1) + 1
    Recompute(packed_model.get_base_model(), mode, None)
    packed = fold(paths)
    assert packed.input_ids.numel() < 0.75 * sum(len(p.ids) for p in paths)
    logps = packed_logps(packed_model, packed)[0][packed.token_index]
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    (logps * factors).sum().backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(
            gradients(packed_model)[name], gradient, atol=1e-4, rtol=1e-4, msg=name
        )


def test_base_model_is_forwarded_with_adapters_off(folder):
    paths = group()
    model = make_model(folder)
    with torch.no_grad(), model.disable_adapter():
        ids = torch.from_numpy(paths[0].ids)
        expected = (
            model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        )
    take_packed_rows(model.get_base_model())
    fuse_layers(model)
    packed = fold(paths)
    with torch.no_grad(), model.disable_adapter():
        logps = packed_logps(model, packed)[0][packed.token_index]
    torch.testing.assert_close(logps[: len(expected) - 4], expected[4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bf16_gradients_point_where_float32_ones_do(folder, monkeypatch, dtype):
    """With weights in bf16, and with float32 weights under autocast, where layers are not fused."""
    monkeypatch.setattr(tree_attention, "attend_run_by_run", tree_attention.attend_varlen)
    monkeypatch.setattr(tree_attention, "_varlen_kernel", lambda: emulated_varlen)
    paths = group()
    factors = torch.randn(sum(len(p.ids) - p.num_prompt for p in paths))
    plain, half = make_model(folder), make_model(folder, dtype=dtype)
    row_by_row(plain, paths, factors, 1.0)
    take_packed_rows(half.get_base_model())
    fuse_layers(half)
    packed = fold(paths)
    with torch.autocast("cpu", torch.bfloat16):
        logps = packed_logps(half, packed)[0][packed.token_index]
    (logps * factors).sum().backward()
    first, second = (
        torch.cat([g.flatten() for g in gradients(model).values()]) for model in (plain, half)
    )
    assert F.cosine_similarity(first, second, dim=0) > 0.995


def test_llama_and_sliding_window(folder):
    """Other decoders take the same route; a window counts in depth, not in packed positions."""
    sizes = {
        "vocab_size": 96, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    paths = group()
    for model in (
        LlamaForCausalLM(LlamaConfig(**sizes)),
        MistralForCausalLM(MistralConfig(**sizes, sliding_window=9)),
    ):
        ids = torch.from_numpy(paths[1].ids)
        expected = (
            model(input_ids=ids[None])
            .logits[0, :-1]
            .log_softmax(-1)
            .gather(1, ids[1:, None])[4:, 0]
        )
        assert unsupported(model) is None
        take_packed_rows(model)
        packed = fold(paths)
        start = len(paths[0].ids) - 5
        logps = packed_logps(model, packed)[0][packed.token_index][start : start + len(expected)]
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)


def test_models_that_cannot_be_packed_are_named(folder):
    model = make_model(folder).get_base_model()
    model.config.attention_dropout = 0.1
    assert unsupported(model) == "it drops out attention"
    model.config.attention_dropout, model.config.attn_logit_softcapping = 0.0, 50.0
    assert unsupported(model) == "it caps its attention scores"
    model.config.attn_logit_softcapping = None
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert unsupported(model) == "it has layers that are not attention"


def test_layers_that_are_not_plain_stay(folder):
    """With LoRA on two projections only, the rest is computed as before."""
    paths = group(pairs=1)
    factors = torch.ones(sum(len(p.ids) - p.num_prompt for p in paths))
    plain, packed_model = (make_model(folder, targets=("q_proj", "v_proj")) for _ in range(2))
    expected = row_by_row(plain, paths, factors, 1.0)
    take_packed_rows(packed_model.get_base_model())
    fuse_layers(packed_model)
    packed = fold(paths)
    torch.testing.assert_close(
        packed_logps(packed_model, packed)[0][packed.token_index], expected, atol=1e-5, rtol=1e-5
    )


# --- Memory and metrics ---------------------------------------------------------------------------


def test_recomputation_is_as_little_as_memory_allows(folder, monkeypatch, caplog):
    """First step: all but one layer. That one kept 100 MiB for half of the budget's tokens, the
    step 400 MiB."""
    mib = 2**20
    # before the step; before and after the last layer
    allocated = iter([1000 * mib, 1200 * mib, 1300 * mib])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1400 * mib)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    # Of the memory that is free, or this process's, 0.9 have room for one layer more, at 200 MiB
    # each.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1500 * mib)
    room = (1000 + 800 + 250) * mib / 0.9 - 1500 * mib
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (room, 99000 * mib))
    model = make_model(folder).get_base_model()
    model.config.num_hidden_layers = 2
    recompute = Recompute(model, "auto", tokens_per_forward=200)
    recompute._unmeasured = True  # as on a GPU
    recompute.begin_step(lambda: 100)
    assert [layer.gradient_checkpointing for layer in recompute.layers] == [True, False]
    model(input_ids=torch.tensor([[1, 2, 3]]))
    with caplog.at_level(logging.INFO):
        recompute.begin_step(lambda: 150)
    assert [layer.gradient_checkpointing for layer in recompute.layers] == [False, False]
    assert "0 of 2 layers" in caplog.text


def test_metrics_of_passes_become_those_of_one():
    metrics = {
        "kl": [9.0, 1.0, 0.0, 4.0],
        "clip_ratio/low_min": [0.1, float("nan"), 0.3],
        "other": [5.0],
    }
    merge_metrics(metrics, {"kl": 1, "other": 1}, [10, 0, 20])
    assert metrics == {"kl": [9.0, 3.0], "clip_ratio/low_min": [0.1], "other": [5.0]}


def test_micro_batches_keep_relatives():
    def batch(rows):
        return {
            "prompt_ids": torch.tensor([[7, row[0]] for row in rows]),
            "prompt_mask": torch.tensor([[0, 1]] * len(rows)),
            "completion_ids": torch.tensor([row[1:] for row in rows]),
            "completion_mask": torch.ones(len(rows), 2, dtype=torch.long),
            "num_items_in_batch": torch.tensor(8),
        }

    first, second = relatives_together(
        [batch([(1, 2, 3), (4, 5, 6)]), batch([(4, 5, 7), (1, 2, 4)])]
    )
    assert first["completion_ids"].tolist() == [[2, 3], [2, 4]]
    assert second["completion_ids"].tolist() == [[5, 6], [5, 7]]
    assert first["num_items_in_batch"] == 8
