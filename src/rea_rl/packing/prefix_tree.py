"""Forward pass over responses that share prefixes: each shared token is computed once.

Original and revision share prompt and kept thinking id by id, all responses of a problem share its
prompt. Responses are folded into a prefix tree (TRL's `TreeRow`), which is forwarded as one packed
row without padding: position ids are depths in the tree, and each token attends to its own response
only (`tree_attention`). TRL's fused head computes log-probs of trained tokens only, in chunks, and
once if responses share them.

The result is that of padded rows, up to rounding, unless the model draws random numbers in its
forward pass.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from rea_rl.packing.attention import Tree, packing, register_tree_attention

# of the shorter completion that relatives share, see `related`
RELATED = 0.25
# Layers in which a token sees others by attention alone. A recurrent layer would carry the state
# of one response into the next.
LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class TokenPath:
    """Ids of prompt and completion, and how many of them are the prompt's."""

    ids: np.ndarray  # (L,)
    num_prompt: int


@dataclass(frozen=True)
class PackedPaths:
    """Responses in one row of N unique tokens, with M trained tokens, U of them unique.

    Attributes:
        input_ids: (1, N).
        position_ids: (1, N), depth in the tree.
        predictors: (U,) packed positions whose next token is trained.
        targets: (U,) these next tokens.
        token_index: (M,) for each trained token, response after response, its place among the U.
        tree: what each token attends to.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    token_index: Tensor
    tree: Tree

    def to(self, device: torch.device) -> PackedPaths:
        """The same paths on `device`."""
        return PackedPaths(*(value.to(device) for value in vars(self).values()))


@cache
def _tree_row() -> type:
    """TRL's `TreeRow` without the package around it, which imports vLLM and all trainers."""
    trl = importlib.util.find_spec("trl")
    file = Path(trl.submodule_search_locations[0], "experimental", "async_grpo", "packing.py")
    spec = importlib.util.spec_from_file_location("trl_packing", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TreeRow


def fold(paths: Sequence[TokenPath]) -> PackedPaths:
    """Fold responses into a prefix tree and lay it out in a row."""
    row = _tree_row()()
    for path in paths:
        mask = torch.arange(len(path.ids)) >= path.num_prompt
        row.add(
            {
                "input_ids": path.ids,  # only its `tolist` is called
                "completion_mask": mask,
                # not ours: the values of a token stay in its response's order
                "old_log_probs": mask,
                "advantage": 0.0,
                "group_id": None,
            }
        )
    packed = row.pack()
    labels = packed["shift_labels"]
    trained = labels != -100
    return PackedPaths(
        input_ids=packed["input_ids"].unsqueeze(0),
        position_ids=packed["position_ids"].unsqueeze(0),
        # labels are shifted: a place has the token that follows it, so it is the predictor
        predictors=trained.nonzero().squeeze(1),
        targets=labels[trained],
        # from a place in the row to its number among the trained places; shared tokens have one
        token_index=(trained.cumsum(0) - 1)[packed["token_index"]],
        tree=_join_segments(
            *(packed[f"tree_{name}"] for name in ("kv_index", "cu_seqlens_q", "cu_seqlens_k"))
        ),
    )


def _join_segments(kv_index: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tree:
    """Make a segment and its first child, which follows it in the row, one run: half the keys,
    fewer queries' blocks.

    The child's keys are its parent's and its own tokens, so the run's keys are those of its last
    segment.
    """
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    bounds, kept = [(0, 0)], []
    # A segment is the tokens between two forks. The attention kernel takes one block of queries
    # with one list of keys, and a token sees the keys up to itself. So a parent and a child that
    # follow each other in the row can be one block: the parent's tokens are the first keys of the
    # child, and causality hides the child's tokens from them.
    for segment, (start, end) in enumerate(pairwise(starts_k)):
        next_start = starts_q[segment + 1]
        last = kv_index[end - 1]
        # The next segment is a child if its keys begin with all keys of this one. Keys of a
        # segment are in the order of its path, so it is enough to compare the last one.
        longer = segment + 2 < len(starts_k) and starts_k[segment + 2] - end > end - start
        if not longer or kv_index[2 * end - start - 1] != last:
            kept.append(kv_index[start:end])
            bounds.append((next_start, bounds[-1][1] + end - start))
    cu_q, cu_k = (torch.tensor(places, dtype=torch.int32) for places in zip(*bounds, strict=True))
    return Tree(torch.cat(kept), cu_q, cu_k, tuple(bounds))


def plan(paths: Sequence[TokenPath], budget: int | None) -> list[list[int]]:
    """Deal responses to forward passes of at most `budget` unique tokens; a longer response goes
    alone.

    Relatives stay together as long as they fit into one pass. Returns the indices of each pass in
    ascending order.
    """
    packs: list[list[int]] = []
    load = 0
    # Families come in the order of their ids, so a family shares most with the one before it. A
    # pass is filled with neighbours: each adds only the tokens that its neighbour does not have.
    for family in _families(paths, budget):
        novel = sum(len(paths[i].ids) - shared for i, shared in family)
        if packs and (budget is None or load + novel <= budget):
            load += novel
        else:
            packs.append([])
            # the prefix that the first one shares with the pass before is not in this one
            load = novel + family[0][1]
        packs[-1] += [i for i, _ in family]
    # `PackedStep` puts results back in the order of the rows.
    return [sorted(pack) for pack in packs]


def num_unique(paths: Sequence[TokenPath]) -> int:
    """Tokens of `fold(paths)`, but for one at each fork: a shared prefix counts once."""
    # The tree forks one token before responses differ, so that each place predicts one token.
    order = order_by_ids(paths)
    neighbours = pairwise(paths[i].ids for i in order)
    shared = sum(common_prefix(first, second) for first, second in neighbours)
    return sum(len(path.ids) for path in paths) - shared


def _families(paths: Sequence[TokenPath], budget: int | None) -> list[list[tuple[int, int]]]:
    """Responses in the order of their ids, related neighbours in one list, each with the prefix it
    shares with the last."""
    families: list[list[tuple[int, int]]] = []
    load, last = 0, None
    # In lexicographic order every pair with a long common prefix has only such pairs between its
    # members, so one look at the neighbour finds all relatives.
    for i in order_by_ids(paths):
        shared = common_prefix(last.ids, paths[i].ids) if last else 0
        load += len(paths[i].ids) - shared
        if (
            last is None
            or not related(last, paths[i], shared)
            or (budget is not None and load > budget)
        ):
            families.append([])
            load = len(paths[i].ids)
        families[-1].append((i, shared))
        last = paths[i]
    return families


def related(first: TokenPath, second: TokenPath, shared: int) -> bool:
    """Whether more than `RELATED` of the shorter completion is common, not only the prompt."""
    shorter = min(len(path.ids) - path.num_prompt for path in (first, second))
    # All responses to a problem share its prompt, and often their first words. Keeping them in one
    # pass for that little would leave passes half empty.
    return shared - second.num_prompt > RELATED * shorter


def order_by_ids(paths: Sequence[TokenPath]) -> list[int]:
    """Indices in lexicographic order of the ids: each response shares most with its neighbours."""
    # Big-endian bytes compare as the numbers do, much faster than lists of ints.
    keys = [path.ids.astype(">i4").tobytes() for path in paths]
    return sorted(range(len(paths)), key=keys.__getitem__)


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """Number of leading ids that both have."""
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    # argmax finds the first True, but gives 0 without any, too
    return int(differ.argmax()) if differ.any() else length


def without_adapter(model: Module) -> PreTrainedModel:
    """The model that an adapter is on, or the model itself; wrappers of accelerate are off
    already."""
    return model.get_base_model() if is_peft_model(model) else model


def unsupported(model: PreTrainedModel) -> str | None:
    """Why `model` cannot be forwarded over packed rows, or None; `fork_check` tries the rest."""
    config = model.config.get_text_config()
    reasons = {
        # it does not ask transformers for its attention
        "its attention cannot be exchanged": not model._supports_attention_backend
        or config.is_encoder_decoder,
        "it has layers that are not attention": not LAYER_TYPES.issuperset(
            getattr(config, "layer_types", None) or ()
        ),
        "it caps its attention scores": getattr(config, "attn_logit_softcapping", None) is not None,
        # learned weights in each softmax that `tree_attention` does not know
        "its attention has sinks": any(
            name.endswith(".sinks") for name, _ in model.named_parameters()
        ),
        # shared tokens would be drawn once for all responses
        "it drops out attention": getattr(config, "attention_dropout", 0.0) > 0,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def add_packed_forward(model: PreTrainedModel) -> Callable[[], None]:
    """Let `packed_logps` forward `model`; everything else is forwarded as before.

    Args:
        model: causal language model without wrappers, for which `unsupported` is None. It has TRL's
            fused head (`add_fused_lm_head`, as in a trainer), which knows the temperature.

    Returns: a function that takes it away again.
    """
    # Evaluation and TRL's padded passes still call the same model, so the plain attention stays
    # reachable: ours hands over to it unless a tree is given.
    plain = model.config._attn_implementation
    model.set_attn_implementation(register_tree_attention(plain))
    hook = model.base_model.register_forward_hook(_keep_predictors, with_kwargs=True)

    def take_away() -> None:
        model.set_attn_implementation(plain)
        hook.remove()

    return take_away


def _keep_predictors(
    _module: Module, _args: tuple, kwargs: dict[str, Any], output: ModelOutput
) -> None:
    """Hidden states (1, U, H) instead of (1, N, H), for the head."""
    # Only tokens whose next one is trained need logits: for a shared prompt there are none.
    if (predictors := kwargs.get("predictors")) is not None:
        output.last_hidden_state = output.last_hidden_state.index_select(1, predictors)


def packed_logps(model: Module, packed: PackedPaths) -> tuple[Tensor, Tensor | None]:
    """Log-probs (U,) of the unique trained tokens, and entropies (U,) if the head has them.

    It calls the model as it is wrapped (PEFT, DDP, DeepSpeed); see `add_packed_forward`.
    """
    with packing():
        output = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            tree=packed.tree,
            predictors=packed.predictors,
            shift_labels=packed.targets.unsqueeze(0),
            fused_lm_head=True,
        )
    entropy = output.entropy
    return output.log_probs[0], None if entropy is None else entropy[0]
