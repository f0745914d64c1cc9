#!/usr/bin/env bash
# The study: trains and evaluates all rows, and writes table, pictures and study.json to docs/study.
#   bash scripts/study.sh [miniature|RECIPE_SET] [OPTIONS of rea_rl.study] [-- OPTIONS of rea_rl.grpo]
#   bash scripts/study.sh miniature --rows base grpo grpo_len rea_rl --seeds 1 --eval_problems 300
#   bash scripts/study.sh miniature --jobs 8                                 # eight runs at a time, on a GPU
# Starts one policy server and one reflection server for all rows, and stops them. For the miniature it first makes the
# reflection model and the threshold of the reflection reward, unless the quickstart has. Run it again to continue after an
# interruption: finished runs are skipped. Variables are in scripts/common.sh.
if (($#)) && [[ $1 != -* ]]; then
    RECIPE_SET=$1
    shift
fi
RECIPE_SET=${RECIPE_SET:-miniature}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MEASURED=output/Miniature-LRM/train_rl_math_cot

# prepare: reflection model and threshold of the miniature; a 7B's are named by its recipe
prepare() {
    local lora=output/miniature/reflection_model_lora merged=output/miniature/reflection_model
    [[ $RECIPE_SET == miniature ]] || return 0
    TRAINER+=(--tokens_per_reflection_file "$MEASURED.scores.json")
    if [[ -f $MEASURED.scores.json && -f $merged/config.json ]]; then
        return
    fi
    attend python -m generation.generate --config recipes/generation/miniature.yaml --split math_cot \
        --qaf dataset/miniature/train_rl.json --qaf_limit 150 --n_generate_sample 4 --model_dir model/Miniature-LRM
    attend python -m generation.math_verify_all "$MEASURED.json" --model_dir model/Miniature-LRM --word_bounded \
        --reflection_quantile 0.2
    attend python -m miniature.label "$MEASURED.json" --out output/miniature/reflection_training.json
    attend python -m rea_rl.sft --config recipes/miniature/config_reflection_model.yaml
    attend python -m rea_rl.merge_lora model/Miniature-Instruct "$lora" "$merged"
}

STUDY=() JOBS=1
while (($#)) && [[ $1 != -- ]]; do
    [[ $1 != --jobs ]] || JOBS=${2:-}
    [[ $1 != --jobs=* ]] || JOBS=${1#*=}
    STUDY+=("$1")
    shift
done
[[ $JOBS =~ ^[1-9][0-9]*$ ]] || die "--jobs is '$JOBS'; give the number of runs at a time, 1 or more"
set_recipe ReflectRL
SERVERS_PER_ROLE=1 place "policy reflection" "${@:2}"
SERVE_ARGS+=(--max_loras $((JOBS * 2))) # a run may sample from a version while it loads the next
[[ $NUM_GPUS != 0 ]] || export NUM_GPUS # to the scripts of rows
[[ $NUM_GPUS != 1 ]] || export ENGINE_MEMORY=${ENGINE_MEMORY:-0.3} # of the rows that sample without the servers
STUDY+=(--num_processes "$NUM_PROCESSES")
training rea_rl.grpo
TRAINER=("${COMMAND[@]}" "${PLAN_ARGS[@]}" --use_cpu "$([[ $NUM_GPUS == 0 ]] && echo true || echo false)")
stop_in_order
python -m rea_rl.study --recipe_set "$RECIPE_SET" "${STUDY[@]}" --dry_run -- "${TRAINER[@]}" "${@:2}"
prepare
TRAINER+=("${@:2}")
start_servers
CUDA_VISIBLE_DEVICES=$TRAIN_GPUS python -m rea_rl.study --recipe_set "$RECIPE_SET" "${STUDY[@]}" -- "${TRAINER[@]}" &
HELPERS=($!)
wait "$!"
