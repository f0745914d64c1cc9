# shellcheck shell=bash disable=SC2034 # variables are for scripts/offline.sh, which sources this
# Offline pipeline of the miniature: its models, problems, and paragraphs. The oracle is the judge.
POLICY=model/Miniature-LRM REFLECTION_BASE=model/Miniature-Instruct WORK=output/miniature
REFLECTION_LORA=$WORK/reflection_model_lora REFLECTION=$WORK/reflection_model
LABELING=$WORK/labeling REFLECTION_DATA=$WORK/reflection_training.json JUDGE=oracle
POLICY_CONFIG=recipes/generation/miniature.yaml LABEL_CONFIG=recipes/generation/miniature_reflection.yaml
JUDGE_COMMAND=(python -m miniature.judge)
TRAIN_ARGS=(--qaf_limit "${TRAIN_LIMIT:-150}") EVAL_ARGS=(--qaf_limit "${EVAL_LIMIT:-100}")
TRAIN_PROBLEMS=${TRAIN_PROBLEMS:-dataset/miniature/train_rl.json}
EVAL_PROBLEMS=${EVAL_PROBLEMS:-dataset/miniature/test.json}
PARAGRAPHS=(--paragraph_tokenizer "$POLICY" --paragraph_min_tokens 1)
FOUND=(--cut_threshold 0.7) CUTS=(--cut_second_half 0 --cut_cap_share 0 --cut_threshold 0.7) FINISH_TOKENS=64
SCORE=(--word_bounded) TEMPLATE=(--prompt_template '{problem}')
