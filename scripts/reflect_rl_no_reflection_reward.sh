#!/usr/bin/env bash
# Ablation without the reflection reward: revision and refined length reward stay.
#   bash scripts/reflect_rl_no_reflection_reward.sh [OPTIONS of rea_rl.grpo]
#   RECIPE_SET=miniature NUM_GPUS=0 bash scripts/reflect_rl_no_reflection_reward.sh --max_steps 2
# Starts the servers that it needs, trains, and stops them; variables are in scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch ReflectRL_noReflectReward "policy reflection" "$@"
