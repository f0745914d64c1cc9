# shellcheck shell=bash disable=SC2034 # variables are for scripts/offline.sh, which sources this
# Offline pipeline of this folder's policy. CONFIG_SUFFIX=reflection_model_small makes the small reflection model.
POLICY=model/$RECIPE_SET REFLECTION_BASE=model/Qwen2.5-7B-Instruct REFLECTION=model/$RECIPE_SET-Reflection
if [[ ${CONFIG_SUFFIX:-} == reflection_model_small ]]; then
    REFLECTION_BASE=model/Qwen2.5-1.5B-Instruct REFLECTION=model/$RECIPE_SET-Reflection-small
fi
REFLECTION_LORA=$REFLECTION-LoRA WORK=output/$RECIPE_SET
LABELING=dataset/$RECIPE_SET REFLECTION_DATA=dataset/$RECIPE_SET/reflection.json
JUDGE=model/Qwen2.5-32B-Instruct
POLICY_CONFIG=recipes/generation/deepseek.yaml LABEL_CONFIG=recipes/generation/qwen.yaml
JUDGE_COMMAND=(python -m generation.generate --n_gpu "${JUDGE_GPUS:-2}")
TRAIN_ARGS=(${TRAIN_LIMIT:+--qaf_limit "$TRAIN_LIMIT"})
EVAL_ARGS=(--qaf_split test ${EVAL_LIMIT:+--qaf_limit "$EVAL_LIMIT"})
TRAIN_PROBLEMS=${TRAIN_PROBLEMS:-agentica-org/DeepScaleR-Preview-Dataset}
EVAL_PROBLEMS=${EVAL_PROBLEMS:-HuggingFaceH4/MATH-500}
PARAGRAPHS=(--paragraph_tokenizer "$POLICY") CUTS=() FOUND=() FINISH_TOKENS=256 SCORE=(--word_bounded) TEMPLATE=()
