#!/usr/bin/env bash
# Baseline: GRPO on accuracy alone. CONFIG_SUFFIX=GRPO_Gen8 samples 8 responses a prompt instead of 4.
#   bash scripts/grpo.sh [OPTIONS of rea_rl.grpo]
#   RECIPE_SET=miniature NUM_GPUS=0 bash scripts/grpo.sh --max_steps 2
# Starts the servers that it needs, trains, and stops them; variables are in scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch GRPO "policy" "$@"
