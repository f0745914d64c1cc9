"""TRL's tree attention on the rows of `train_step.py`: its layers, its code.

TRL fetches its attention kernel from the Hub. In its place is the variable-length kernel that
`rea_rl.packing` takes too, or on the CPU one attention with a dense mask.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from rea_rl.packing import attention
from rea_rl.packing.prefix_tree import TokenPath

TREE_KEYS = ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")


@cache
def trl_packing() -> ModuleType:
    """TRL's file with the row and the attention, without the package around it."""
    trl = importlib.util.find_spec("trl")
    file = Path(trl.submodule_search_locations[0], "experimental", "async_grpo", "packing.py")
    spec = importlib.util.spec_from_file_location("trl_packing", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._flash_attn = lambda: SimpleNamespace(flash_attn_varlen_func=in_place_of_the_kernel)
    module.register_tree_attention()
    return module


def kernel_name(device: torch.device) -> str:
    """What stands in place of the Hub's kernel."""
    return "torch's varlen attention" if device.type == "cuda" else "sdpa with a dense mask"


def in_place_of_the_kernel(
    query: torch.Tensor,  # (N, H, D)
    key: torch.Tensor,  # (K, H_kv, D)
    value: torch.Tensor,
    cu_q: torch.Tensor,  # (S + 1,)
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    **_: Any,
) -> torch.Tensor:
    """Attention of segments, each with keys of its own; (N, H, D)."""
    scale = query.size(-1) ** -0.5 if softmax_scale is None else softmax_scale
    if query.is_cuda and query.dtype != torch.float32:
        window = (window_size[0], 0) if causal else window_size
        return attention._varlen_kernel()(
            query, key, value, cu_q, cu_k, max_q, max_k, scale=scale, window=window
        )
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    mask = dense_mask(cu_q.tolist(), cu_k.tolist()).to(query.device)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def dense_mask(cu_q: list[int], cu_k: list[int]) -> torch.Tensor:
    """(N, K): whether a query sees a key, causal at the bottom right of each segment."""
    mask = torch.zeros(cu_q[-1], cu_k[-1], dtype=torch.bool)
    for (q, next_q), (k, next_k) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
        num_q, num_k = next_q - q, next_k - k
        mask[q:next_q, k:next_k] = torch.ones(num_q, num_k, dtype=torch.bool).tril(num_k - num_q)
    return mask


def fold_as_trl(paths: list[TokenPath]) -> dict[str, torch.Tensor]:
    """TRL's packed row of responses."""
    row = trl_packing().TreeRow()
    for path in paths:
        mask = torch.arange(len(path.ids)) >= path.num_prompt
        row.add(
            {"input_ids": torch.from_numpy(path.ids), "completion_mask": mask,
             "old_log_probs": mask, "advantage": 0.0, "group_id": None}
        )  # fmt: skip
    return row.pack()


def trl_logps(model: Any, packed: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probs of trained tokens, as in TRL's `compute_loss`."""
    device = model.device
    tree = {key: packed[key].to(device) for key in TREE_KEYS}
    tree["tree_max_seqlen_q"], tree["tree_max_seqlen_k"] = packed["tree_max_seqlens"].tolist()
    row = {
        key: packed[key].unsqueeze(0).to(device)
        for key in ("input_ids", "position_ids", "shift_labels")
    }
    output = model(fused_lm_head=True, **row, **tree)
    return output.log_probs.flatten()[packed["token_index"].to(device)]
