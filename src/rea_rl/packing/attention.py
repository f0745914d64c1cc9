"""Attention over a packed prefix tree: each token attends to its own path from the root, and to
nothing else.

Registered with transformers, so that every decoder that takes its attention from
`AttentionInterface` can be forwarded over packed paths: `model(input_ids, position_ids=...,
tree=tree)`. Without a tree it is the attention from before.

The tree is laid out in runs. A run is a chain of tokens that follow each other in the packed row;
its keys are its ancestors and itself. Queries are the last tokens of their keys, and the
variable-length kernels align a causal mask at the bottom right, so one call with gathered keys is
the attention of all runs.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TREE_ATTENTION = "shared_prefix"


@dataclass(frozen=True)
class Tree:
    """Runs of a packed row of N tokens: R of them, with K keys in all.

    Attributes:
        kv_index: (K,) packed positions of the keys, run after run.
        cu_q: (R + 1,) int32, where each run begins among the N queries.
        cu_k: (R + 1,) int32, where each run's keys begin in `kv_index`.
        bounds: the same two as Python numbers, pair after pair, so that nothing waits for the
            device.
    """

    kv_index: Tensor
    cu_q: Tensor
    cu_k: Tensor
    bounds: tuple[tuple[int, int], ...]

    def to(self, device: torch.device) -> Tree:
        """The same tree on `device`."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)[:3]
        }
        return Tree(bounds=self.bounds, **moved)

    @property
    def runs(self) -> list[tuple[slice, slice]]:
        """Queries (in the row) and keys (in `kv_index`) of each run."""
        return [
            (slice(q, next_q), slice(k, next_k))
            for (q, k), (next_q, next_k) in pairwise(self.bounds)
        ]

    @property
    def max_lengths(self) -> tuple[int, int]:
        """Most queries and most keys of a run."""
        queries = max(q.stop - q.start for q, _ in self.runs)
        return queries, max(k.stop - k.start for _, k in self.runs)


class _GatherRows(torch.autograd.Function):
    """`index_select` whose backward pass sums in float32: a shared key has many gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = rows.size(0)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = grad.new_zeros((ctx.num_rows, *grad.shape[1:]), dtype=torch.float32)
        return total.index_add_(0, index, grad.float()).to(grad.dtype), None


def attend_run_by_run(
    query: Tensor,  # (N, H, D)
    key: Tensor,  # (K, H_kv, D), gathered
    value: Tensor,  # (K, H_kv, D), gathered
    tree: Tree,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Plain reference, (N, H, D): one `scaled_dot_product_attention` a run, with its mask."""
    outputs = []
    for queries, keys in tree.runs:
        num_q, num_k = queries.stop - queries.start, keys.stop - keys.start
        # (1, H, num, D)
        of_run = query[queries], key[keys], value[keys]
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in of_run)
        # The queries are the last of the keys: query i sees the first num_k - num_q + i + 1.
        mask = torch.ones(num_q, num_k, dtype=torch.bool, device=q.device).tril(num_k - num_q)
        if window is not None:
            # and of these the last `window`, itself among them
            mask = mask.triu(num_k - num_q - window + 1)
        # A run from the root: the causal mask of the kernel is this one, without writing it out.
        chain = num_q == num_k and window is None
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if chain else mask,
            is_causal=chain,
            scale=scale,
            enable_gqa=True,
        )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def attend_varlen(
    query: Tensor,  # (N, H, D)
    key: Tensor,  # (K, H_kv, D), gathered
    value: Tensor,  # (K, H_kv, D), gathered
    tree: Tree,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """One call of a variable-length kernel: FlashAttention if it is installed, else torch's own."""
    # A window counts the token itself, the kernel counts those to its left; -1 is all of them.
    left = -1 if window is None else window - 1
    arrays = (query, key, value, tree.cu_q, tree.cu_k, *tree.max_lengths)
    return _varlen_kernel()(*arrays, scale=scale, window=(left, 0))


@cache
def _varlen_kernel() -> Callable[..., Tensor]:
    """Kernel of (q, k, v, cu_q, cu_k, max_q, max_k) with keywords for scale and window; causal."""
    if importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        return lambda *arrays, scale, window: flash_attn_varlen_func(
            *arrays, softmax_scale=scale, causal=True, window_size=window
        )
    from torch.nn.attention.varlen import varlen_attn

    # Recent torch requires `enable_gqa=True` for grouped heads; older versions accept them as they
    # are.
    grouped = (
        {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    )
    return lambda *arrays, scale, window: varlen_attn(
        *arrays, scale=scale, window_size=window, **grouped
    )


def tree_attention(
    module: Module,
    query: Tensor,  # (1, H, N, D)
    key: Tensor,  # (1, H_kv, N, D)
    value: Tensor,  # (1, H_kv, N, D)
    attention_mask: Tensor | None,
    *,
    plain: str,
    tree: Tree | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function for transformers; returns (1, N, H, D). Without a tree, `plain`'s."""
    if tree is None:
        # None would take the place of a default of the other function.
        kwargs |= {} if scaling is None else {"scaling": scaling}
        kwargs |= {} if sliding_window is None else {"sliding_window": sliding_window}
        return _plain_attention(module, plain)(module, query, key, value, attention_mask, **kwargs)
    # (1, H, N, D) -> (N, H, D): a packed row is alone in its batch.
    query, key, value = (x.transpose(1, 2)[0] for x in (query, key, value))
    key, value = (_GatherRows.apply(x, tree.kv_index) for x in (key, value))
    # The kernels of variable length are for 16 bits on GPUs.
    attend = (
        attend_varlen
        if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
        else attend_run_by_run
    )
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    return attend(query, key, value, tree, scale, sliding_window).unsqueeze(0), None


def _plain_attention(module: Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    # each model has its own
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


# Whether packed paths are being forwarded: their tree is the mask. Layers that are computed again
# build no mask.
_packing: ContextVar[bool] = ContextVar("packing", default=False)


@contextmanager
def packing() -> Iterator[None]:
    """Within it, models with tree attention build no mask."""
    token = _packing.set(True)
    yield
    _packing.reset(token)


def _tree_mask(plain: str, **kwargs: Any) -> Any:
    return None if _packing.get() else ALL_MASK_ATTENTION_FUNCTIONS[plain](**kwargs)


@cache
def register_tree_attention(plain: str) -> str:
    """Make tree attention over `plain` known to transformers; its name there."""
    name = TREE_ATTENTION if plain == "sdpa" else f"{TREE_ATTENTION}_over_{plain.replace('/', '_')}"
    AttentionInterface.register(name, partial(tree_attention, plain=plain))
    AttentionMaskInterface.register(name, partial(_tree_mask, plain))
    return name
