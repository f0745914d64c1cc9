#!/usr/bin/env bash
# The method on a real model of 0.5B and real word problems: makes a reasoning model and its reflection model, chooses the
# cut, trains all rows of the comparison, evaluates them, and writes the report to docs/real.
#   bash scripts/real.sh                        # all stages, on all visible GPUs
#   UNTIL=detector bash scripts/real.sh         # stop after a stage: problems, lrm, detector, cut, rows, extras, report
#   BASE=model/Qwen2.5-0.5B-Instruct bash scripts/real.sh
#   LRM=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B REFLECTION_BASE=Qwen/Qwen2.5-0.5B-Instruct bash scripts/real.sh
# Variables:
#   BASE             instruct model: folder or Hub id (default model/Qwen2.5-Coder-0.5B-Instruct if it exists, else the Hub id)
#   LRM              a reasoning model to start from; the stages that make one are then left out. The adapter in
#                    model/Qwen2.5-Coder-0.5B-LRM is taken if it exists: remove that folder to make it again
#   REFLECTION_BASE  model that becomes the reflection model (default BASE)
#   WORDS            folder with local problem files, see generation.word_problems (default: they come from the Hub)
#   ROWS, SEEDS      rows of rea_rl.study and their seeds (default: all of the report; three seeds of the main rows)
#   STEPS            optimizer steps of each row (default: the recipes')
#   SFT_ROWS         rows a pass and GPU of the supervised stages (default 8, for a GPU of 24 GB; a step's rows stay 64)
#   RUNS_PER_GPU     training runs at a time on each GPU (default 2)
#   REPORT           folder of the report (default docs/real)
#   LIMIT, SFT_STEPS use the first so many problems of each file, and optimizer steps of each supervised stage: to try them
# A stage is skipped if its result exists: an interrupted run continues. Only small files are needed to continue on
# another machine: the adapters (*_lora), cut.json, the .scores.json files, and the folders of the study.
export RECIPE_SET=Qwen2.5-Coder-0.5B-Instruct
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
no_options "$@"
[[ -x $VENV/bin/python ]] || die "$VENV is missing; run: bash scripts/setup.sh"

S=output/$RECIPE_SET
R=recipes/$RECIPE_SET
DATA=dataset/words
BASE=${BASE:-$([[ -d model/$RECIPE_SET ]] && echo "model/$RECIPE_SET" || echo "Qwen/$RECIPE_SET")}
REFLECTION_BASE=${REFLECTION_BASE:-$BASE}
POLICY=${LRM:-$S/LRM}
REFLECTION="$S/reflection_model"
SAMPLING=recipes/generation/qwen_0.5b.yaml
LABELLING=recipes/generation/qwen_0.5b_reflection.yaml
PARAGRAPHS=(--paragraph_tokenizer "$POLICY" --paragraph_min_tokens 16)
names=$(visible_gpus)
read -ra GPUS <<<"${names//$'\n'/ }"
NUM_GPUS=${#GPUS[@]}
WORKERS=$(($(nproc) > 4 ? $(nproc) / 2 : 2))
DEVICE=cuda CPU_ARGS=()
if ((NUM_GPUS == 0)); then
    DEVICE=cpu GPUS=(cpu) CPU_ARGS=(--use_cpu true --bf16 false --dtype float32)
fi
LIMITED=(${LIMIT:+--qaf_limit "$LIMIT"})
# The adapters that ship with the project are of one base model only.
PACKED_LRM=model/Qwen2.5-Coder-0.5B-LRM
PACKED_REFLECTION=model/Qwen2.5-Coder-0.5B-Reflection

# stage FILE COMMAND...: run the command unless the file that it ends with is there
stage() {
    local file=$1 begin=$SECONDS
    shift
    if [[ -e $file ]]; then
        echo "real: skipped, $file is there"
        return
    fi
    attend "$@"
    [[ -e $file ]] || die "$file was not written by: $*"
    echo "real: $file took $((SECONDS - begin)) s"
}

# check_settings: what would end the run hours later
check_settings() {
    local name stages="problems lrm detector cut rows extras report"
    [[ -z ${UNTIL:-} || " $stages " == *" $UNTIL "* ]] || die "UNTIL is '$UNTIL'; it is one of: $stages"
    for name in SEEDS STEPS SFT_ROWS RUNS_PER_GPU LIMIT SFT_STEPS EVAL_SAMPLES BASE_SAMPLES SOLVER_SAMPLES DETECTOR_SAMPLES HELDOUT_SAMPLES; do
        [[ ${!name:-1} =~ ^[1-9][0-9]*$ ]] || die "$name is '${!name}'; give a number of 1 or more"
    done
    study --dry_run >/dev/null
}

# until STAGE: end here if UNTIL names this stage
until_() {
    [[ ${UNTIL:-} != "$1" ]] || { echo "real: stopped after $1, as UNTIL says"; exit 0; }
}

generate() { python -m generation.generate --config "$SAMPLING" --output_dir "$S/generated" "$@"; }
score() { python -m generation.math_verify_all "$@" --word_bounded --num_workers "$WORKERS" --results "$S/verify.json" >/dev/null; }

# sft NAME [OPTIONS]: supervised fine-tuning on as many GPUs as share a step's rows evenly
sft() {
    local command=(python -m rea_rl.sft) rows ranks=$((NUM_GPUS > 1 ? NUM_GPUS : 1))
    RECIPE=$R/config_$1.yaml
    rows=$(recipe_value rows_per_step)
    while ((rows % ranks)); do
        ranks=$((ranks - 1))
    done
    ((ranks == 1)) ||
        command=(python -m rea_rl.run.ranks --config_file recipes/accelerate_configs/ddp.yaml --num_processes "$ranks" -m rea_rl.sft)
    CUDA_VISIBLE_DEVICES=$(training_gpus "$ranks") "${command[@]}" --config "$RECIPE" \
        ${SFT_ROWS:+--per_device_train_batch_size "$SFT_ROWS"} "${CPU_ARGS[@]}" ${SFT_STEPS:+--max_steps "$SFT_STEPS"} "${@:2}"
}

# training_gpus NUMBER: the first so many of GPUS, with commas; nothing without any
training_gpus() { ((NUM_GPUS == 0)) || (IFS=, && echo "${GPUS[*]:0:$1}"); }

merge() { python -m rea_rl.merge_lora "$@" --device "$DEVICE"; }

make_problems() {
    stage "$DATA/test.json" python -m generation.word_problems --out "$DATA" ${WORDS:+--source "$WORDS"}
}

# make_lrm: instruct model -> solver of its own right samples -> traces of the solver's samples -> reasoning model
make_lrm() {
    local base_samples solver_samples
    [[ -z ${LRM:-} ]] || return 0
    if [[ -d $PACKED_LRM && $(basename "$BASE") == "$RECIPE_SET" ]]; then
        stage "$S/LRM_lora/adapter_model.safetensors" python -m rea_rl.adapter_pack unpack "$PACKED_LRM" "$S/LRM_lora"
    fi
    if [[ ! -e "$S/LRM_lora/adapter_model.safetensors" ]]; then
        if [[ ! -e "$S/solver_lora/adapter_model.safetensors" ]]; then
            base_samples=$S/generated/$(basename "$BASE")/bootstrap_math_cot.json
            stage "$base_samples" generate --qaf "$DATA/bootstrap.json" --model_dir "$BASE" --temperature 0.8 --max_tokens 400 \
                --n_generate_sample "${BASE_SAMPLES:-5}" "${LIMITED[@]}"
            stage "$S/solver.json" python -m generation.bootstrap solver "$base_samples" --out "$S/solver.json" --num_workers "$WORKERS"
            stage "$S/solver_lora/adapter_model.safetensors" sft solver --model_name_or_path "$BASE"
        fi
        solver_samples=$S/generated/$(basename "$BASE")/bootstrap_math_cot_solver.json
        stage "$solver_samples" generate --qaf "$DATA/bootstrap.json" --model_dir "$BASE" --lora "$S/solver_lora" --temperature 0.9 \
            --max_tokens 320 --n_generate_sample "${SOLVER_SAMPLES:-6}" --save_suffix _solver "${LIMITED[@]}"
        stage "$S/traces.json" python -m generation.bootstrap traces "$solver_samples" --out "$S/traces.json" --num_workers "$WORKERS" \
            --max_per_problem 2
        stage "$S/LRM_lora/adapter_model.safetensors" sft LRM --model_name_or_path "$BASE"
    fi
    stage "$S/LRM/config.json" merge "$BASE" "$S/LRM_lora" "$S/LRM" --chat_template "$R/reasoning.jinja"
}

# judge PATHS [OPTIONS of --clean]: both judgements by the gold answer; sets JUDGE_CUTS
judge() {
    local paths=$1 labels
    labels=$S/generated/answer_judge/$(basename "$paths" .json)_labeling_distill_use_asw
    JUDGE_CUTS=${labels}_cuts.json
    ask() {
        python -m generation.answer_judge --config "$LABELLING" --output_dir "$S/generated" --model_dir answer_judge "$@"
    }
    stage "$labels.json" ask --qaf "$paths" --split labeling_distill_use_asw "${PARAGRAPHS[@]}"
    stage "${labels}_candidates.json" python -m generation.labeling_distill_utils "$labels.json" \
        --candidates "${labels}_candidates.json"
    stage "${labels}_candidates_json.json" ask --qaf "${labels}_candidates.json" --split json
    stage "$JUDGE_CUTS" python -m generation.labeling_distill_utils "$labels.json" --clean \
        --confirmations "${labels}_candidates_json.json" --paths "$paths" --out "$JUDGE_CUTS" "${PARAGRAPHS[@]}" "${@:2}"
}

# take_detector: the reflection model that ships with the reasoning model, its threshold and its cut
take_detector() {
    local file bases
    bases=$(basename "$BASE")/$(basename "$REFLECTION_BASE")
    [[ -z ${LRM:-} && -d $PACKED_LRM && -d $PACKED_REFLECTION && $bases == "$RECIPE_SET/$RECIPE_SET" ]] || return 0
    stage "$S/reflection_model_lora/adapter_model.safetensors" \
        python -m rea_rl.adapter_pack unpack "$PACKED_REFLECTION" "$S/reflection_model_lora"
    for file in tokens_per_reflection.json cut.json; do
        [[ -e "$S/$file" ]] || cp "$PACKED_REFLECTION/$file" "$S/$file"
    done
}

# make_detector: responses of the policy, threshold of the reflection reward, labels, reflection model
make_detector() {
    local paths
    take_detector
    paths=$S/generated/$(basename "$POLICY")/detector_math_cot.json
    if [[ ! -e "$S/reflection_model_lora/adapter_model.safetensors" || ! -e "$S/tokens_per_reflection.json" ]]; then
        stage "$paths" generate --qaf "$DATA/detector.json" --model_dir "$POLICY" --temperature 0.8 \
            --n_generate_sample "${DETECTOR_SAMPLES:-3}" "${LIMITED[@]}"
        stage "$S/tokens_per_reflection.json" measure_reflection "$paths"
        judge "$paths" --train_file "$S/reflection_training.json" "${REPLY[@]}"
        stage "$S/reflection_model_lora/adapter_model.safetensors" sft reflection_model --model_name_or_path "$REFLECTION_BASE"
    fi
    stage "$REFLECTION/config.json" merge "$REFLECTION_BASE" "$S/reflection_model_lora" "$REFLECTION"
}

measure_reflection() {
    score "$1" --model_dir "$POLICY" --reflection_quantile 0.2
    cp "${1%.json}.scores.json" "$S/tokens_per_reflection.json"
}

# choose_cut: on responses to held-out problems
choose_cut() {
    local paths labels rows finished
    [[ ! -e "$S/cut.json" ]] || { echo "real: skipped, $S/cut.json is there"; return 0; }
    paths=$S/generated/$(basename "$POLICY")/heldout_math_cot.json
    labels="$S/generated/reflection_model/heldout_math_cot_labeling.json"
    rows="$S/cut_rows.json"
    finished=$S/generated/$(basename "$POLICY")/cut_rows_math_cot.json
    stage "$paths" generate --qaf "$DATA/heldout.json" --model_dir "$POLICY" --n_generate_sample "${HELDOUT_SAMPLES:-3}" "${LIMITED[@]}"
    judge "$paths"
    stage "$labels" python -m generation.generate --config "$LABELLING" --output_dir "$S/generated" --qaf "$paths" --split labeling \
        --logprobs 5 --model_dir "$REFLECTION" "${PARAGRAPHS[@]}"
    stage "$rows" python -m generation.calibrate rows "$paths" --labels "$labels" --judge_cuts "$JUDGE_CUTS" --out "$rows" \
        --cut_cap_share 0 "${PARAGRAPHS[@]}"
    stage "$finished" generate --qaf "$rows" --model_dir "$POLICY" --max_tokens 64
    stage "$S/cut.json" python -m generation.calibrate choose "$finished" --labels "$labels" --judge_cuts "$JUDGE_CUTS" \
        --out "$S/cut.json" --cut_cap_share 0 --num_workers "$WORKERS" --margin "${MARGIN:-1.0}" --min_safe "${MIN_SAFE:-0.97}" \
        --tokens_per_reflection_file "$S/tokens_per_reflection.json"
}

# study [OPTIONS]: the study of the rows that are trained
study() {
    local rows seeds=(${SEEDS:+--seeds "$SEEDS"}) steps=(${STEPS:+--steps "$STEPS"})
    read -ra rows <<<"${ROWS:-base grpo grpo_len rea_rl reward_only model_only sigmoid l1_max}"
    attend python -m rea_rl.study --recipe_set "$RECIPE_SET" --rows "${rows[@]}" "${seeds[@]}" "${steps[@]}" --model "$POLICY" \
        --work "$S/study" --out "$S/study_report" --eval_dataset "$DATA/test.json" --eval_problems "${LIMIT:-1919}" \
        --eval_samples "${EVAL_SAMPLES:-4}" --gpus "${GPUS[@]}" --runs_per_gpu "${RUNS_PER_GPU:-2}" --server_context 3072 "$@"
}

# answers NAME MODEL [OPTIONS]: answers of a model without reinforcement learning to the test problems
answers() {
    stage "$S/generated/$1/$(basename "$2")/test_math_cot.json" python -m generation.generate --config "$SAMPLING" \
        --output_dir "$S/generated/$1" --qaf "$DATA/test.json" --model_dir "$2" --n_generate_sample "${EVAL_SAMPLES:-4}" \
        "${LIMITED[@]}" "${@:3}"
}

# forced ROW: answers of a trained row that are forced at token budgets
forced() {
    local responses rows adapter=()
    responses=$S/study/$1/seed-0/eval/$(basename "$POLICY")/test_math_cot.json
    rows=$S/forced/$1.json
    [[ $1 == base ]] || adapter=(--lora "$S/study/$1/seed-0")
    stage "$rows" python -m generation.forced_budgets "$responses" --out "$rows" --model_dir "$POLICY" --budgets 64 128 256 512 1024
    stage "$S/forced/$(basename "$POLICY")/$1_math_cot.json" python -m generation.generate --config "$SAMPLING" --qaf "$rows" \
        --model_dir "$POLICY" --output_dir "$S/forced" --max_tokens 32 "${adapter[@]}"
}

# cut_responses: the reasoning model's own responses, cut by the reflection model and finished: no training at all
cut_responses() {
    local responses labels rows
    responses=$S/study/base/seed-0/eval/$(basename "$POLICY")/test_math_cot.json
    labels="$S/generated/reflection_model/test_math_cot_labeling.json"
    rows="$S/cut_test.json"
    stage "$labels" python -m generation.generate --config "$LABELLING" --output_dir "$S/generated" --qaf "$responses" \
        --split labeling --logprobs 5 --model_dir "$REFLECTION" "${PARAGRAPHS[@]}"
    stage "$rows" python -m generation.labeling_to_prefix "$responses" --labels "$labels" --out "$rows" --cut_file "$S/cut.json" \
        --cut_cap_share 0 --strategies normal "${PARAGRAPHS[@]}"
    stage "$S/generated/$(basename "$POLICY")/cut_test_math_cot.json" generate --qaf "$rows" --model_dir "$POLICY" --max_tokens 64
}

make_extras() {
    local row
    answers instruct "$BASE"
    [[ -n ${LRM:-} ]] || answers solver "$BASE" --lora "$S/solver_lora"
    cut_responses
    for row in ${FORCED:-base grpo grpo_len rea_rl}; do
        forced "$row"
    done
}

# make_report: scores of files that the study did not score, and the report
make_report() {
    local file rows
    mapfile -t rows < <(find "$S/forced" "$S/generated" -name '*_math_cot.json' \
        \( -path '*/forced/*' -o -name 'test_math_cot.json' -o -name 'cut_test_math_cot.json' \))
    for file in "${rows[@]}"; do
        stage "${file%.json}.scores.json" score "$file" --model_dir "$POLICY"
    done
    attend python -m rea_rl.study.real_report "$S" --model_dir "$POLICY" --train_problems "$DATA/train.json" --num_workers "$WORKERS" \
        --out "${REPORT:-docs/real}"
}

# One command a line: behind `&&` a stage that fails would not end the script.
stop_in_order
check_settings
make_problems
until_ problems
make_lrm
until_ lrm
make_detector
until_ detector
choose_cut
until_ cut
study
until_ rows
make_extras
until_ extras
make_report
