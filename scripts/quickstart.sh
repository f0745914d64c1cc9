#!/usr/bin/env bash
# The whole method on the embedded miniature: install, sample, label, train a reflection model, serve both models, train
# the policy online, and compare it with its base on held-out problems. Ends with a table and a picture.
#   bash scripts/quickstart.sh [OPTIONS of rea_rl.grpo]
#   CONFIG_SUFFIX=GRPO_len bash scripts/quickstart.sh    # another recipe of recipes/miniature on the same data
# Variables: those of scripts/common.sh; EVAL_PROBLEMS (default 500) and EVAL_SAMPLES (default 4) for the comparison.
# Safe to run again: stages whose result is complete are skipped; remove output/ to start afresh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SECONDS=0
bash scripts/setup.sh
TIMES=("install=$SECONDS")

export RECIPE_SET=miniature
source scripts/common.sh

BASE=model/Miniature-LRM
VARIANT=${CONFIG_SUFFIX:-ReflectRL}
RUN=output/miniature/$VARIANT
MERGED=${RUN}_merged
OUT=output/quickstart
[[ $VARIANT == ReflectRL ]] || OUT+=_$VARIANT
set_recipe "$VARIANT"
LAUNCHER=grpo
[[ $(recipe_value revision) == False ]] || LAUNCHER=reflect_rl

stop_in_order

# stage NAME FILE COMMAND...: run the command unless the file that it ends with is there, and keep its seconds
stage() {
    local name=$1 file=$2 begin=$SECONDS
    shift 2
    if [[ -e $file ]]; then
        echo "quickstart: $name: skipped, $file is there"
        return
    fi
    echo "quickstart: $name ..."
    attend "$@"
    TIMES+=("$name=$((SECONDS - begin))")
    echo "quickstart: $name took $((SECONDS - begin)) s"
}

generate() { python -m generation.generate --config recipes/generation/miniature.yaml "$@"; }

score() { python -m generation.math_verify_all "$@" --model_dir "$BASE" --word_bounded >/dev/null; }

# evaluate MODEL [OPTIONS of the scoring]: on the held-out problems
evaluate() {
    generate --qaf dataset/miniature/test.json --qaf_limit "${EVAL_PROBLEMS:-500}" \
        --n_generate_sample "${EVAL_SAMPLES:-4}" --model_dir "$1"
    score "output/$(basename "$1")/test_math_cot.json" --slips "${@:2}"
}

# A merged model samples several times faster on the CPU than base and adapter.
evaluate_trained() {
    python -m rea_rl.merge_lora "$BASE" "$RUN" "$MERGED"
    evaluate "$MERGED" --base output/Miniature-LRM/test_math_cot.scores.json
}

stage sample output/Miniature-LRM/train_rl_math_cot.json \
    generate --qaf dataset/miniature/train_rl.json --qaf_limit 150 --n_generate_sample 4 --model_dir "$BASE"
stage threshold output/Miniature-LRM/train_rl_math_cot.scores.json \
    score output/Miniature-LRM/train_rl_math_cot.json --reflection_quantile 0.2
stage label output/miniature/reflection_training.json \
    python -m miniature.label output/Miniature-LRM/train_rl_math_cot.json --out output/miniature/reflection_training.json
stage reflection_model output/miniature/reflection_model_lora/train_results.json \
    python -m rea_rl.sft --config recipes/miniature/config_reflection_model.yaml
stage merge output/miniature/reflection_model/config.json \
    python -m rea_rl.merge_lora model/Miniature-Instruct output/miniature/reflection_model_lora \
    output/miniature/reflection_model
stage train "$RUN/train_results.json" bash "scripts/$LAUNCHER.sh" "$@"
stage evaluate_base output/Miniature-LRM/test_math_cot.scores.json evaluate "$BASE"
stage evaluate_trained "output/$(basename "$MERGED")/test_math_cot.scores.json" evaluate_trained

python -m miniature.report --base output/Miniature-LRM/test_math_cot.scores.json \
    --trained "output/$(basename "$MERGED")/test_math_cot.scores.json" --run "$RUN" --name "$VARIANT" \
    --out "$OUT" --seconds "${TIMES[@]}" "total=$SECONDS"
