# shellcheck shell=bash disable=SC2034 # variables are for scripts/offline.sh, which sources this
# Offline pipeline of this folder's policy. CONFIG_SUFFIX=reflection_model_small makes the small reflection model.
source recipes/offline_math.sh
REFLECTION_BASE=model/Qwen2.5-7B-Instruct REFLECTION=model/$RECIPE_SET-Reflection
if [[ ${CONFIG_SUFFIX:-} == reflection_model_small ]]; then
    REFLECTION_BASE=model/Qwen2.5-1.5B-Instruct REFLECTION=model/$RECIPE_SET-Reflection-small
fi
REFLECTION_LORA=$REFLECTION-LoRA
POLICY_CONFIG=recipes/generation/qwen3.yaml
