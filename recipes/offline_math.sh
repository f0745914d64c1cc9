# shellcheck shell=bash disable=SC2034 # variables are for scripts/offline.sh
# Judge, problems and sizes of the offline pipelines of mathematical reasoning. A folder's offline.sh sources this, and
# then sets its own models and files.
POLICY=model/$RECIPE_SET WORK=output/$RECIPE_SET JUDGE=model/Qwen2.5-32B-Instruct
LABELING=dataset/$RECIPE_SET REFLECTION_DATA=dataset/$RECIPE_SET/reflection.json
POLICY_CONFIG=recipes/generation/deepseek.yaml LABEL_CONFIG=recipes/generation/qwen.yaml
JUDGE_COMMAND=(python -m generation.generate --n_gpu "${JUDGE_GPUS:-2}")
TRAIN_ARGS=(${TRAIN_LIMIT:+--qaf_limit "$TRAIN_LIMIT"})
EVAL_ARGS=(--qaf_split test ${EVAL_LIMIT:+--qaf_limit "$EVAL_LIMIT"})
TRAIN_PROBLEMS=${TRAIN_PROBLEMS:-agentica-org/DeepScaleR-Preview-Dataset}
EVAL_PROBLEMS=${EVAL_PROBLEMS:-HuggingFaceH4/MATH-500}
PARAGRAPHS=(--paragraph_tokenizer "$POLICY") CUTS=() FOUND=() FINISH_TOKENS=256 SCORE=(--word_bounded) TEMPLATE=()
