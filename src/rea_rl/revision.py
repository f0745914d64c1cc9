"""The heart of REA-RL as pure functions: cut a sampled response, pair it with its revision, turn
rewards into advantages.

One prompt's rows, from sampling to loss:

    sampled response        ids of the completion, `... </think> ... \\boxed{} <eos>`
      cut_completion_ids    -> kept ids, and the text that is forced after them; the policy then
                            finishes the answer
      rows of a group       -> original 0, revision 0, original 1, revision 1, ...           2G rows
      keep_or_replace       -> a revision with a wrong answer is replaced by its original
      group_advantages      -> one advantage per row, comparing the 2G rows with each other
      overthinking_signal   -> optionally, one more signal per token from the cut onward

Shapes: B rows of a batch, F reward functions, G rows of a group, N = B / G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generation.cuts import FindThinkEnd, find_marker
from rea_core import moved

__getattr__ = moved.names_of(__name__)  # names that have left this module

# Keeps groups with nearly equal rewards finite; the value of TRL and of the original.
STD_EPSILON = 1e-4


@dataclass(frozen=True)
class OverthinkingSignal:
    """Places of the signal in a pair (0/1 per id), and its sign for (original, revision)."""

    mask_original: list[int]
    mask_revision: list[int]
    sign: tuple[float, float]


# --- Rows of a group ------------------------------------------------------------------------------


def keep_or_replace(correct: list[bool]) -> list[int]:
    """Source row for each of B interleaved rows: itself, or its original's for a revision with a
    wrong answer.

    A wrong revision says that the cut came too early, not that stopping is wrong; training on it
    would punish brevity.
    """
    if len(correct) % 2:
        raise ValueError(f"{len(correct)} rows cannot alternate original, revision")
    return [row - 1 if row % 2 and not is_right else row for row, is_right in enumerate(correct)]


def replaced_revisions(correct: list[bool]) -> list[int]:
    """Source row for each of B / 2 trained rows if only revisions are trained: the original
    if one is wrong.

    >>> replaced_revisions([True, False, False, True])
    [0, 3]
    """
    return keep_or_replace(correct)[1::2]


def serial_cuts(num_paragraphs: int, num_cuts: int) -> list[int]:
    """Indices of the last kept paragraph of `num_cuts` exits, evenly spread over a response,
    earliest first.

    S-GRPO (arXiv 2505.07686) draws random tokens; paragraphs' ends leave sentences whole. The whole
    response is an exit of its own, so the last paragraph is none. A response of fewer paragraphs
    has some exits twice.

    >>> serial_cuts(8, 3)
    [1, 3, 5]
    """
    return [max((i + 1) * num_paragraphs // (num_cuts + 1) - 1, 0) for i in range(num_cuts)]


def group_advantages(
    rewards: Tensor,
    correct: Tensor,
    group_size: int,
    scale: bool | Literal["batch"] = True,
) -> Tensor:
    """Advantage of each row: its summed reward against the mean of its group, over a standard
    deviation.

    A group without a correct response has nothing to learn from: its advantages are 0 for any
    `scale` says.

    Args:
        rewards: (B, F), one column per reward function, rows as `keep_or_replace` left them.
        correct: (B,), whether the row's answer is right, bool or 0/1.
        group_size: G, consecutive rows that belong to one prompt; 2 x sampled responses with
            revision.
        scale: divide by the group's unbiased standard deviation + 1e-4; "batch": by that of the
            advantages of all B rows (DLER, arXiv 2510.15110), so that a group of nearly equal
            rewards is not blown up; False: by nothing.

    Returns:
        (B,), finite for finite rewards. Raises ValueError unless G is at least 2 and divides B.
    """
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"group_size {group_size} must be at least 2 and divide the {len(rewards)} rows of "
            "rewards"
        )
    totals = rewards.sum(dim=1).view(-1, group_size)  # (N, G)
    advantages = totals - totals.mean(dim=1, keepdim=True)  # (N, G)
    if scale is True:
        advantages = advantages / (totals.std(dim=1, keepdim=True) + STD_EPSILON)
    solved = correct.bool().view(-1, group_size).any(dim=1, keepdim=True)  # (N, 1)
    advantages = advantages.masked_fill(~solved, 0.0).flatten()
    return advantages / (advantages.std() + STD_EPSILON) if scale == "batch" else advantages


def differing_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Whether the summed rewards of a row's group differ, (B,), bool; the others teach nothing
    (dynamic sampling, DAPO). If no group differs all are kept, so that a step is never empty.

    Arguments are those of `group_advantages`.
    """
    totals = rewards.sum(dim=1).view(-1, group_size)  # (N, G)
    differs = totals.amax(dim=1) - totals.amin(dim=1) > STD_EPSILON  # (N,)
    return (differs | ~differs.any()).repeat_interleave(group_size)


def overthinking_signal(
    original: list[int],
    revision: list[int],
    think_end_id: int | Sequence[int] | FindThinkEnd,
    correct: tuple[bool, bool],
) -> OverthinkingSignal:
    """Extra signal from the cut onward: away from the original's overthinking, towards the
    revision's early end.

    The cut is where the revision's thinking ends. Both masks are 0 if the revision saves at most
    one id; otherwise they are 1 from the cut to the end. The sign is (-1, +1) if the revision is
    correct and (0, 0) if it is not; the loss adds sign x |advantage| (mean or maximum) if the
    mask is 1.

    Args:
        original, revision: completion ids of a pair.
        think_end_id: id of `</think>`, its ids, or a function that finds it, see
            `think_end_finder`.
        correct: whether (original, revision) have a right answer.
    """
    find = think_end_id if callable(think_end_id) else lambda ids: find_marker(ids, think_end_id)
    cut = find(revision)
    if cut + 1 >= find(original):
        return OverthinkingSignal([0] * len(original), [0] * len(revision), (0.0, 0.0))
    return OverthinkingSignal(
        mask_original=[int(i >= cut) for i in range(len(original))],
        mask_revision=[int(i >= cut) for i in range(len(revision))],
        sign=(-1.0, 1.0) if correct[1] else (0.0, 0.0),
    )


def pair_signals(
    paths: Sequence[tuple[list[int], bool]], think_end_id: int | Sequence[int] | FindThinkEnd
) -> list[OverthinkingSignal]:
    """`overthinking_signal` of each pair of `paths`: (completion ids, whether right)."""
    pairs = zip(paths[::2], paths[1::2], strict=True)
    return [
        overthinking_signal(original, revision, think_end_id, (first, second))
        for (original, first), (revision, second) in pairs
    ]


def token_advantages(
    advantages: Tensor,
    signals: Sequence[OverthinkingSignal],
    group_size: int,
    num_tokens: int,
    how: str,
) -> Tensor:
    """Advantages per token: those of the rows, and the signal of `overthinking_signal` from each
    cut onward.

    Args:
        advantages: (B,), rows alternate original, revision.
        signals: B / 2, one per pair.
        group_size: G, consecutive rows over whose |advantage| the signal's size is taken.
        num_tokens: C.
        how: "mean" or "max" of |advantage| is the signal's size.

    Returns:
        (B, C); columns beyond the end of a row have its advantage.
    """
    sizes = advantages.abs().view(-1, group_size)  # (N, G)
    of_groups = sizes.mean(dim=1) if how == "mean" else sizes.amax(dim=1)  # (N,)
    size = of_groups.repeat_interleave(group_size)  # (B,)
    result = advantages.unsqueeze(1).repeat(1, num_tokens)  # (B, C)
    for pair, signal in enumerate(signals):
        for row, mask, sign in zip(
            (2 * pair, 2 * pair + 1),
            (signal.mask_original, signal.mask_revision),
            signal.sign,
            strict=True,
        ):
            places = torch.tensor(mask, device=result.device)
            result[row, : len(mask)] += sign * size[row] * places
    return result
