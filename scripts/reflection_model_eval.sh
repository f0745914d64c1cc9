#!/usr/bin/env bash
# The reflection model on held-out responses: weak, normal and strong cuts against random ones, and its labels against the
# judge's. Ends with tables and a picture; trained baselines (sft_train.sh, rpo_train.sh) have rows in it.
#   bash scripts/reflection_model_eval.sh
#   RECIPE_SET=miniature bash scripts/reflection_model_eval.sh
# Variables are in scripts/offline.sh and scripts/common.sh. Stages whose result is complete are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/offline.sh"
no_options "$@"
set_recipe reflection_model
[[ -e $REFLECTION/config.json ]] || die "$REFLECTION is missing; run: bash scripts/reflection_model_train.sh"
sample_eval
judge
LABELS=output/$(basename "$REFLECTION")/$(stem "$PATHS")_labeling.json
answered "$LABELS" python -m generation.generate --config "$LABEL_CONFIG" --qaf "$PATHS" --split labeling --logprobs 5 \
    --model_dir "$REFLECTION" "${PARAGRAPHS[@]}"
MODELS=()
for name in SFT RPO; do
    [[ ! -e $(scores_of $name) ]] || MODELS+=("$name=$(scores_of $name)")
done
compare "$WORK/reflection_model_eval" --labels "$LABELS" --labels "$LABELS" --judge_cuts "$JUDGE_CUTS" \
    --models "${MODELS[@]}"
