"""Train with a reward of your own, next to those of the project.

    RECIPE_SET=miniature bash scripts/vllm.sh 12345 cpu &    # its server; `kill %1` ends it
    python -m rea_rl.vllm_server --role policy --recipe recipes/miniature/config_GRPO.yaml --wait
    python examples/custom_reward.py --config recipes/miniature/config_GRPO.yaml \\
        --reward_funcs accuracy brevity --max_steps 2 --output_dir output/own_reward

All flags are those of `rea_rl.grpo`; with `--dry_run` nothing is trained and no server is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from rea_rl import grpo
from rea_rl.rewards import REWARDS, Reward

TARGET = 100  # tokens


def brevity(correct: Sequence[bool], num_tokens: Sequence[int]) -> list[float]:
    """1 for a right answer of at most TARGET tokens, and less for a longer one.

    >>> brevity([True, True, False], [80, 200, 10])
    [1.0, 0.5, 0.0]
    """
    rows = zip(correct, num_tokens, strict=True)
    return [min(TARGET / tokens, 1.0) if is_right else 0.0 for is_right, tokens in rows]


# Its name is now valid in recipes. The columns are fields of `rea_rl.rollout.record.Rollout`.
REWARDS["brevity"] = Reward(brevity, ("correct", "num_tokens"))

if __name__ == "__main__":
    grpo.main()
