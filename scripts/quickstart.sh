#!/usr/bin/env bash
# The whole method on the embedded miniature: install, sample, label, train a reflection model, serve both models, train
# the policy online, and compare it with its base on held-out problems. It ends with a table and a picture.
#   bash scripts/quickstart.sh [OPTIONS of rea_rl.grpo]
#   bash scripts/quickstart.sh --fast [OPTIONS]          # a few steps with the reflection model of model/, in
#                                                        # output/quickstart_fast; nothing of it is used by the full one
#   CONFIG_SUFFIX=GRPO_len bash scripts/quickstart.sh    # another recipe of recipes/miniature on the same data
# Variables: those of scripts/common.sh; EVAL_PROBLEMS (default 500, fast 100) and EVAL_SAMPLES (default 4, fast 1) for
# the comparison.
# Running it again is safe: complete stages are skipped. Remove output/ to begin again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

FAST=''
if [[ ${1:-} == --fast ]]; then
    FAST=yes
    shift
fi
SECONDS=0
bash scripts/setup.sh
TIMES=("install=$SECONDS")

export RECIPE_SET=miniature
source scripts/common.sh

BASE=model/Miniature-LRM
VARIANT=${CONFIG_SUFFIX:-ReflectRL}
RESPONSES=output # folder of the generation files
RUN=output/miniature/$VARIANT
OUT=output/quickstart${FAST:+_fast}
[[ $VARIANT == ReflectRL ]] || OUT+=_$VARIANT
PROBLEMS=500 SAMPLES=4 TRAINING=()
if [[ $FAST ]]; then
    RESPONSES=$OUT RUN=$OUT/$VARIANT PROBLEMS=100 SAMPLES=1
    # Few and small steps need a high learning rate; without its decay they unlearn correcting.
    TRAINING=(--output_dir "$RUN" --max_steps 9 --prompts_per_step 6
        --learning_rate 1e-2 --warmup_steps 0
        --reflection_model model/Miniature-Reflection
        --tokens_per_reflection_file model/Miniature-LRM/tokens_per_reflection.json)
fi
MERGED=${RUN}_merged
SCORES=test_math_cot.scores.json
BASE_SCORES=$RESPONSES/$(basename "$BASE")/$SCORES
TRAINED_SCORES=$RESPONSES/$(basename "$MERGED")/$SCORES
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

generate() {
    python -m generation.generate --config recipes/generation/miniature.yaml --output_dir "$RESPONSES" "$@"
}

score() { python -m generation.math_verify_all "$@" --model_dir "$BASE" --word_bounded >/dev/null; }

# answer MODEL: the held-out problems
answer() {
    generate --qaf dataset/miniature/test.json --qaf_limit "${EVAL_PROBLEMS:-$PROBLEMS}" \
        --n_generate_sample "${EVAL_SAMPLES:-$SAMPLES}" --model_dir "$1"
}

score_base() { score "$RESPONSES/$(basename "$BASE")/test_math_cot.json" --slips; }

score_trained() { score "$RESPONSES/$(basename "$MERGED")/test_math_cot.json" --slips --base "$BASE_SCORES"; }

# A merged model samples several times faster on the CPU than base and adapter.
merge() { python -m rea_rl.merge_lora "$BASE" "$RUN" "$MERGED"; }

evaluate_base() { answer "$BASE" && score_base; }

evaluate_trained() { merge && answer "$MERGED" && score_trained; }

# evaluate_both: at once, since starting the engines takes longer than the few answers
evaluate_both() {
    evaluate_base &
    merge
    answer "$MERGED"
    wait "$!"
    score_trained
}

# make_reflection_model: and the threshold of the reflection reward, from responses of the base model
make_reflection_model() {
    stage sample output/Miniature-LRM/train_rl_math_cot.json \
        generate --qaf dataset/miniature/train_rl.json --qaf_limit 150 --n_generate_sample 4 --model_dir "$BASE"
    stage threshold output/Miniature-LRM/train_rl_math_cot.scores.json \
        score output/Miniature-LRM/train_rl_math_cot.json --reflection_quantile 0.2
    stage label output/miniature/reflection_training.json \
        python -m miniature.label output/Miniature-LRM/train_rl_math_cot.json --out output/miniature/reflection_training.json \
        "${REPLY[@]}"
    stage reflection_model output/miniature/reflection_model_lora/train_results.json \
        python -m rea_rl.sft --config recipes/miniature/config_reflection_model.yaml
    stage merge output/miniature/reflection_model/config.json \
        python -m rea_rl.merge_lora model/Miniature-Instruct output/miniature/reflection_model_lora \
        output/miniature/reflection_model
}

[[ $FAST ]] || make_reflection_model
stage train "$RUN/train_results.json" bash "scripts/$LAUNCHER.sh" "${TRAINING[@]}" "$@"
if [[ $FAST ]]; then
    stage evaluate "$TRAINED_SCORES" evaluate_both
else
    stage evaluate_base "$BASE_SCORES" evaluate_base
    stage evaluate_trained "$TRAINED_SCORES" evaluate_trained
fi

python -m miniature.report --base "$BASE_SCORES" --trained "$TRAINED_SCORES" --run "$RUN" --name "$VARIANT" \
    --out "$OUT" --seconds "${TIMES[@]}" "total=$SECONDS"
echo "viewer: ${VENV#"$PWD"/}/bin/python -m rea_rl.viewer $RUN    # writes a page with every response"
