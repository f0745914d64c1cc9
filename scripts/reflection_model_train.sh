#!/usr/bin/env bash
# The reflection model: sample responses, let the judge label them twice, train on the confirmed labels, merge.
#   bash scripts/reflection_model_train.sh
#   RECIPE_SET=miniature bash scripts/reflection_model_train.sh    # the oracle is the judge
#   REFLECTION_REPLY=compact bash scripts/reflection_model_train.sh    # one token a label
# Variables are in scripts/offline.sh and scripts/common.sh. Stages whose result is complete are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/offline.sh"
no_options "$@"
set_recipe reflection_model
sample_train
judge --train_file "$REFLECTION_DATA" "${REPLY[@]}"
stage "$REFLECTION_LORA/train_results.json" train_offline rea_rl.sft "$REFLECTION_LORA" --dataset_name "$REFLECTION_DATA"
stage "$REFLECTION/config.json" python -m rea_rl.merge_lora "$REFLECTION_BASE" "$REFLECTION_LORA" "$REFLECTION"
