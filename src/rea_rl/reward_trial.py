"""Rewards are tried before a run begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from rea_rl.rewards import REWARDS, RewardError, RewardFunc, reward_columns
from rea_rl.rollout.record import Rollout

# two responses to one problem
TRIAL = [
    Rollout(
        problem_id="0", step=0, policy_version="", kind="original", prompt_ids=[0],
        completion_ids=[0] * num_tokens, logprobs=[-1.0] * num_tokens,
        text="Wait, 1 + 1 = 2.\n</think>\n\\boxed{2}", finish_reason="stop",
        num_tokens=num_tokens, num_think_tokens=num_tokens - 4, num_reflections=1,
        correct=is_right,
    )
    for num_tokens, is_right in ((12, True), (16, False))
]  # fmt: skip


def try_rewards(funcs: Iterable[RewardFunc]) -> None:
    """Ask rewards for two responses to one problem, before anything starts. Raises RewardError for
    one that reads a column which no response has, raises, or gives no number for each."""
    known = [field.name for field in dataclasses.fields(Rollout)]
    for name, reward in REWARDS.items():
        if unknown := [column for column in reward.columns if column not in known]:
            raise RewardError(
                f"the reward {name!r} reads {unknown}, which no response has; its columns may be "
                f"{', '.join(known)}"
            )
    columns = {column: [getattr(row, column) for row in TRIAL] for column in reward_columns()}
    for func in funcs:
        try:
            func([""] * len(TRIAL), [row.text for row in TRIAL], **columns)
        except RewardError:
            raise
        except Exception as error:  # of a function that is not ours
            raise RewardError(
                f"the reward {func.__name__!r} raised {type(error).__name__} ({error}) for two "
                "responses to one problem; mend its function"
            ) from error
