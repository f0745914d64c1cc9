#!/usr/bin/env bash
# Evaluate a model on the six benchmarks: generate, score, and print the table of all models scored so far.
#   bash scripts/math_eval.sh [GPU_ID] MODEL_NAME STEP
#   bash scripts/math_eval.sh 0 7B 0                                   # the base model
#   bash scripts/math_eval.sh 0,1 output/ReflectRL 200                 # adapter of checkpoint-200
#   bash scripts/math_eval.sh cpu MINIATURE_BASE 0
#   SHARD=1/4 bash scripts/math_eval.sh 7B 0                           # one of four hosts, such as of a Slurm array
# GPU_ID      index or indices, one engine per GPU; cpu (default: all visible GPUs, or the CPU without any)
# MODEL_NAME  7B (model/DeepSeek-R1-Distill-Qwen-7B), MINIATURE_BASE (model/Miniature-LRM), or a folder, also below model/
# STEP        0: the folder is a model (a base or merged one) or an adapter; N: the adapter in its checkpoint-N
# Variables:
#   EVAL_DATA    folder with GSM8K_test.json, math500_test.json, gaokao2023en_test.json, amc23_test.json,
#                aime2024_test.json, olympiadbench_test.json (default dataset/eval_data if it was fetched,
#                `python -m generation.evaluation.benchmarks fetch`, else dataset/eval_sample, a few problems to try this with)
#   NUM_SAMPLES  responses per problem (default 8 for AIME and AMC, 1 for the rest)
#   EVAL_LIMIT   first so many problems of each benchmark
#   BUDGETS      budgets in tokens to score besides, "8192 16384"; the table is of the largest
#   EVAL_RECIPE  recipe of generation.generate (default that of the base model)
#   EVAL_OUT     folder of the output (default output/math_eval); a killed run that is repeated continues there
#   SHARD        i/n: generate the share i of n of the responses, and end; they share EVAL_OUT. Once all shares are there,
#                the same command without SHARD joins and scores them
#   BASE         model of the table that TR and AES refer to (default 7B-0, for the miniature MINIATURE_BASE-0)
#   BASE_MODEL   folder or Hub id of the model that an adapter belongs to (default: what its configuration says)
#   VERIFIER     which response is right (default math), as in the training recipe, see docs/verifiers.md
#   VENV         virtual environment (default .venv)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if (($# == 2)); then
    names=$(visible_gpus)
    set -- "${names//$'\n'/,}" "$@"
    [[ $1 ]] || set -- cpu "${@:2}"
fi
(($# == 3)) || die "usage: bash $0 [GPU_ID] MODEL_NAME STEP, where GPU_ID is an index, or cpu"
[[ $3 =~ ^[0-9]+$ ]] || die "STEP is $3; it must be 0 for a model or the number of a checkpoint"
check_gpu "$1"
check_shard
[[ -x $VENV/bin/python ]] || die "$VENV is missing; run: bash scripts/setup.sh"

# find_model NAME STEP: sets MODEL, and ADAPTER if there is one
find_model() {
    case $1 in
        7B) MODEL=model/DeepSeek-R1-Distill-Qwen-7B ;;
        MINIATURE_BASE) MODEL=model/Miniature-LRM ;;
        *) MODEL=$1 && [[ -d $1 ]] || MODEL=model/$1 ;;
    esac
    [[ -d $MODEL ]] || die "MODEL_NAME is $1, but the folder $MODEL is missing"
    (($2 == 0)) || MODEL=$MODEL/checkpoint-$2
    ADAPTER=
    if [[ -f $MODEL/adapter_config.json ]]; then
        ADAPTER=$MODEL
        MODEL=${BASE_MODEL:-$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["base_model_name_or_path"])' \
            "$MODEL/adapter_config.json")}
        # a Hub id: no folder of this machine, whose first part is none either
        [[ $MODEL != [!/.]*/[!/]* || $MODEL == */*/* || -e ${MODEL%%/*} ]] || return 0
        [[ -f $MODEL/config.json ]] ||
            die "the base of $ADAPTER is $MODEL, which is missing; set BASE_MODEL to its folder or Hub id"
    fi
    [[ -f $MODEL/config.json ]] || die "there is neither a model nor an adapter in $MODEL; see STEP"
}

find_model "$2" "$3"
if [[ ${MODEL,,} == *miniature* ]]; then
    recipe=miniature base=MINIATURE_BASE-0 extra=(miniature=dataset/miniature/test.json) score=(--word_bounded)
else
    recipe=deepseek base=7B-0 extra=() score=()
fi
fetched=dataset/eval_data
[[ -d $fetched ]] || fetched=dataset/eval_sample
EVAL_DATA=${EVAL_DATA:-$fetched}
EVAL_OUT=${EVAL_OUT:-output/math_eval}
source="$MODEL${ADAPTER:+ with $ADAPTER}"
name=$(basename "$2")-$3
# Two models of one name, such as A/ReflectRL and B/ReflectRL, have a folder and a row each.
mark=$EVAL_OUT/$name/model.txt
[[ ! -f $mark || $(<"$mark") == "$source" ]] || name+=-$(cksum <<<"$source" | cut -d' ' -f1)
mkdir -p "$EVAL_OUT/$name"
echo "$source" >"$EVAL_OUT/$name/model.txt"
read -ra budgets <<<"${BUDGETS:-}"
export CUDA_VISIBLE_DEVICES=$1
[[ $1 != cpu ]] || CUDA_VISIBLE_DEVICES=

stop_in_order
echo "$(basename "$0"): $name is $source, problems of $EVAL_DATA"
collect() {
    # by the first of several hosts, since the others may read them already
    [[ -z ${SHARD:-} || ! -e $EVAL_OUT/$name/collected ]] || return 0
    python -m generation.evaluation.benchmarks collect "$EVAL_DATA" --out "$EVAL_OUT/$name/problems" \
        --extra "${extra[@]}" ${NUM_SAMPLES:+--num_samples "$NUM_SAMPLES"} ${EVAL_LIMIT:+--limit "$EVAL_LIMIT"}
    touch "$EVAL_OUT/$name/collected"
}
exec {turn}>"$EVAL_OUT/$name/collect.lock"
flock "$turn"
collect
exec {turn}>&-
responses=()
for problems in "$EVAL_OUT/$name"/problems/x*.json; do
    samples=$(basename "$problems" .json)
    attend python -m generation.generate --config "${EVAL_RECIPE:-recipes/generation/$recipe.yaml}" --qaf "$problems" \
        --model_dir "$MODEL" ${ADAPTER:+--lora "$ADAPTER"} --n_generate_sample "${samples#x}" --output_dir "$EVAL_OUT/$name" \
        ${SHARD:+--shard "$SHARD"}
    responses+=("$EVAL_OUT/$name/$(basename "$MODEL")/${samples}_math_cot.json")
done
if [[ ${SHARD:-} ]]; then
    echo "$(basename "$0"): share $SHARD is done; the command without SHARD joins all and scores them"
    exit
fi
attend python -m generation.math_verify_all "${responses[@]}" --model_dir "$MODEL" "${score[@]}" ${VERIFIER:+--verifier "$VERIFIER"} ${budgets[0]:+--budgets "${budgets[@]}"}
python -m generation.evaluation.table "$EVAL_OUT" --base "${BASE:-$base}" --save_to "$EVAL_OUT/tradeoff.png"
