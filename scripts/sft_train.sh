#!/usr/bin/env bash
# Supervised fine-tuning. Without arguments it is the offline baseline: its data, training, and evaluation.
#   bash scripts/sft_train.sh [MODEL TRAIN_FILE OUTPUT_DIR [OPTIONS of rea_rl.sft]]
#   bash scripts/sft_train.sh Qwen2.5-7B-Instruct dataset/deepscaler_reflection_training.json model/Reflection_Model_Lora
#   RECIPE_SET=miniature bash scripts/sft_train.sh
# MODEL is a folder, a Hub id, or the name of a folder in model/. Variables are in scripts/offline.sh and scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/offline.sh"
set_recipe SFT
if (($# == 0)); then
    baseline_data
    stage "$WORK/SFT/train_results.json" train_offline rea_rl.sft "$WORK/SFT"
    evaluate SFT
    exit
fi
(($# >= 3)) || die "usage: bash $0 [MODEL TRAIN_FILE OUTPUT_DIR [OPTIONS of rea_rl.sft]]"
MODEL=$1
[[ -d $MODEL || ! -d model/$MODEL ]] || MODEL=model/$MODEL
stage "$3/train_results.json" train_offline rea_rl.sft "$3" --model_name_or_path "$MODEL" --dataset_name "$2" "${@:4}"
