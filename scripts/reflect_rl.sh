#!/usr/bin/env bash
# REA-RL: revision by the reflection model, refined length reward, reflection reward.
#   bash scripts/reflect_rl.sh [OPTIONS of rea_rl.grpo]
#   RECIPE_SET=miniature NUM_GPUS=0 bash scripts/reflect_rl.sh --max_steps 2
# Starts the servers that it needs, trains, and stops them; variables are in scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch ReflectRL "policy reflection" "$@"
