#!/usr/bin/env bash
# Offline baseline RPO: preference pairs of shortened and original responses, DPO plus SFT loss, and its evaluation.
#   bash scripts/rpo_train.sh [OPTIONS of rea_rl.dpo]
#   RECIPE_SET=miniature bash scripts/rpo_train.sh
# Variables are in scripts/offline.sh and scripts/common.sh. Stages whose result is complete are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/offline.sh"
set_recipe RPO
baseline_data
stage "$WORK/RPO/train_results.json" train_offline rea_rl.dpo "$WORK/RPO" "$@"
evaluate RPO
