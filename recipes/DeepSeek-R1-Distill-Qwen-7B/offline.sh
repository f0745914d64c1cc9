# shellcheck shell=bash disable=SC2034 # variables are for scripts/offline.sh, which sources this
# Offline pipeline of this folder's policy; a copy of the folder is for a policy of the copy's name.
POLICY=model/$RECIPE_SET REFLECTION_BASE=model/Qwen2.5-7B-Instruct WORK=output/$RECIPE_SET
REFLECTION_LORA=model/Reflection_Model_Lora REFLECTION=model/Reflection_Model
LABELING=dataset/labeling REFLECTION_DATA=dataset/deepscaler_reflection_training.json
JUDGE=model/Qwen2.5-32B-Instruct
POLICY_CONFIG=recipes/generation/deepseek.yaml LABEL_CONFIG=recipes/generation/qwen.yaml
JUDGE_COMMAND=(python -m generation.generate --n_gpu "${JUDGE_GPUS:-2}")
TRAIN_ARGS=(${TRAIN_LIMIT:+--qaf_limit "$TRAIN_LIMIT"})
EVAL_ARGS=(--qaf_split test ${EVAL_LIMIT:+--qaf_limit "$EVAL_LIMIT"})
TRAIN_PROBLEMS=${TRAIN_PROBLEMS:-agentica-org/DeepScaleR-Preview-Dataset}
EVAL_PROBLEMS=${EVAL_PROBLEMS:-HuggingFaceH4/MATH-500}
PARAGRAPHS=(--paragraph_tokenizer "$POLICY") CUTS=() FOUND=() FINISH_TOKENS=256 SCORE=() TEMPLATE=()
