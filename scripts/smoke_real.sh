#!/usr/bin/env bash
# REA-RL for two optimizer steps on real GSM8K problems with SmolLM2-135M-Instruct, on the CPU or a GPU.
#   bash scripts/smoke_real.sh [--dataset_name FILE] [OPTIONS of rea_rl.grpo]
# FILE is a list with problem and answer; by default the Hub id in the recipe is used.
RECIPE_SET=SmolLM2-135M-Instruct CONFIG_SUFFIX=ReflectRL_smoke
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch ReflectRL_smoke "policy reflection" --max_steps 2 "$@"
