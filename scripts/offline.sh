# shellcheck shell=bash disable=SC2034 # variables are for the launchers
# Shared by the launchers of the offline pipeline. Variables of common.sh hold here too; more of them:
#   TRAIN_PROBLEMS, EVAL_PROBLEMS     problems that the reflection model and the baselines learn from, and held-out ones
#   TRAIN_LIMIT, EVAL_LIMIT           how many of them (default: all; of the miniature 150 and 100)
#   JUDGE_GPUS                        GPUs per engine of the large judge (default 2)
#   ENGINE_MEMORY                     share of its GPU for an engine of the policy (default 0.9)
#   VERIFIER                          which response is right (default math), as in the training recipe
#   JUDGE_SPLIT                       labeling_distill_use_asw (default), or labeling_distill: without the gold answer
#   SHARD                             i/n: answer the share i of n of the next stage of responses or labels, and end;
#                                     join: join them, continue up to the next such stage, and end. Without it one host
#                                     does all
# Models and problems of a recipe set are in recipes/$RECIPE_SET/offline.sh.
# A stage is skipped when the file that it ends with is there.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
stop_in_order
[[ ${SHARD:-} == join ]] || check_shard

JUDGE_SPLIT=${JUDGE_SPLIT:-labeling_distill_use_asw}
RIGHT=(${VERIFIER:+--verifier "$VERIFIER"})
ENGINE=(${ENGINE_MEMORY:+--gpu_memory_utilization "$ENGINE_MEMORY"})
SETTINGS=recipes/$RECIPE_SET/offline.sh
[[ -f $SETTINGS ]] || die "$SETTINGS is missing: models and problems of this recipe set; copy that of another set"
# shellcheck source=../recipes/miniature/offline.sh
source "$SETTINGS"

# stage FILE COMMAND...: run the command unless the file that it ends with is there
stage() {
    local file=$1 begin=$SECONDS
    shift
    if [[ -e $file ]]; then
        echo "$(basename "$0"): skipped, $file is there"
        return
    fi
    attend "$@"
    [[ -e $file ]] || die "$file was not written by: $*"
    echo "$(basename "$0"): $file took $((SECONDS - begin)) s"
}

# answered FILE COMMAND...: a stage of generation.generate, or a share of it
answered() {
    if [[ -z ${SHARD:-} || -e $1 ]]; then
        stage "$@"
    elif [[ $SHARD != join ]]; then
        attend "${@:2}" --shard "$SHARD"
        echo "$(basename "$0"): share $SHARD of $1 is done; SHARD=join joins all"
        exit
    elif compgen -G "${1%.json}.shard-*" >/dev/null; then
        stage "$@"
    else
        echo "$(basename "$0"): $1 is the next to be shared"
        exit
    fi
}

# stem FILE: its name without .json
stem() { basename "$1" .json; }

# sample PROBLEMS SUFFIX [OPTIONS]: four responses a problem by the policy; sets PATHS
sample() {
    local name
    name=$(stem "$1")
    PATHS=output/$(basename "$POLICY")/${name}_math_cot$2.json
    answered "$PATHS" python -m generation.generate "${ENGINE[@]}" --config "$POLICY_CONFIG" --qaf "$1" --split math_cot \
        --model_dir "$POLICY" --n_generate_sample 4 --save_suffix "$2" "${@:3}"
}

sample_train() { sample "$TRAIN_PROBLEMS" "" "${TRAIN_ARGS[@]}"; }
sample_eval() { sample "$EVAL_PROBLEMS" _offline "${EVAL_ARGS[@]}"; }

# ask_judge FILE SPLIT OPTIONS...: one pass of the judge over a file
ask_judge() {
    "${JUDGE_COMMAND[@]}" --config "$LABEL_CONFIG" --qaf "$1" --split "$2" --model_dir "$JUDGE" "${@:3}"
}

# judge [OPTIONS of --clean]: both judgements of PATHS; sets JUDGE_CUTS, a row per response with the place of its result
judge() {
    local labels
    labels=output/$(basename "$JUDGE")/$(stem "$PATHS")_$JUDGE_SPLIT
    JUDGE_CUTS=${labels}_cuts.json
    answered "$labels.json" ask_judge "$PATHS" "$JUDGE_SPLIT" "${PARAGRAPHS[@]}"
    stage "${labels}_candidates.json" python -m generation.labeling_distill_utils "$labels.json" \
        --candidates "${labels}_candidates.json"
    answered "${labels}_candidates_json.json" ask_judge "${labels}_candidates.json" json
    stage "$JUDGE_CUTS" python -m generation.labeling_distill_utils "$labels.json" --clean \
        --confirmations "${labels}_candidates_json.json" --paths "$PATHS" --out "$JUDGE_CUTS" "${PARAGRAPHS[@]}" "$@"
}

# finish FILE: the policy finishes cut responses; sets FINISHED
finish() {
    FINISHED=output/$(basename "$POLICY")/$(stem "$1")_math_cot.json
    answered "$FINISHED" python -m generation.generate "${ENGINE[@]}" --config "$POLICY_CONFIG" --qaf "$1" --split math_cot \
        --model_dir "$POLICY" --max_tokens "$FINISH_TOKENS"
}

# train_offline MODULE OUTPUT_DIR [OPTIONS]: train RECIPE on all training processes
train_offline() {
    place "" "${@:3}"
    training "$1"
    CUDA_VISIBLE_DEVICES=$TRAIN_GPUS "${COMMAND[@]}" --config "$RECIPE" --output_dir "$2" \
        --use_cpu "$([[ $NUM_GPUS == 0 ]] && echo true || echo false)" "${@:3}"
}

# baseline_data: rows for SFT and RPO: responses that the judge cut and the policy finished
baseline_data() {
    sample_train
    judge --train_file "$REFLECTION_DATA" "${REPLY[@]}"
    finish "$JUDGE_CUTS"
    stage "$LABELING/RPO.json" python -m generation.sft_data "$FINISHED" --paths "$PATHS" "${TEMPLATE[@]}" "${RIGHT[@]}" \
        --sft_out "$LABELING/SFT.json" --rpo_out "$LABELING/RPO.json"
}

# evaluate NAME: merge the baseline's adapter and score it on the held-out problems, against the policy
evaluate() {
    local merged=$WORK/$1_merged base paths
    stage "$merged/config.json" python -m rea_rl.merge_lora "$POLICY" "$WORK/$1" "$merged"
    sample_eval
    base=${PATHS%.json}.scores.json
    stage "$base" python -m generation.math_verify_all "$PATHS" --model_dir "$POLICY" "${SCORE[@]}" "${RIGHT[@]}"
    paths=$(scores_of "$1")
    answered "${paths%.scores.json}.json" python -m generation.generate "${ENGINE[@]}" --config "$POLICY_CONFIG" --qaf "$EVAL_PROBLEMS" \
        --split math_cot --model_dir "$merged" --n_generate_sample 4 --save_suffix _offline "${EVAL_ARGS[@]}"
    attend python -m generation.math_verify_all "${paths%.scores.json}.json" --model_dir "$POLICY" --base "$base" "${SCORE[@]}" "${RIGHT[@]}"
}

# scores_of NAME: the scores file of `evaluate NAME`
scores_of() { echo "output/$1_merged/$(stem "$EVAL_PROBLEMS")_math_cot_offline.scores.json"; }

# compare OPTIONS...: finish PATHS' strategies and report them in folder OUT
compare() {
    local out=$1 rows=$1/strategies.json
    shift
    stage "$rows" python -m generation.labeling_to_prefix "$PATHS" --out "$rows" "${PARAGRAPHS[@]}" "${@:1:2}" "${CUTS[@]}"
    FINISHED=$out/$(basename "$POLICY")/strategies_math_cot.json
    answered "$FINISHED" python -m generation.generate "${ENGINE[@]}" --config "$POLICY_CONFIG" --qaf "$rows" --split math_cot \
        --model_dir "$POLICY" --max_tokens "$FINISH_TOKENS" --output_dir "$out"
    attend python -m generation.evaluation.strategies "$FINISHED" --model_dir "$POLICY" --out "$out" "${FOUND[@]}" "${SCORE[@]}" "${RIGHT[@]}" "${@:3}"
}
