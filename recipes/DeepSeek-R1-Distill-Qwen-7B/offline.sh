# shellcheck shell=bash disable=SC2034 # variables are for scripts/offline.sh, which sources this
# Offline pipeline of this folder's policy; a copy of the folder is for a policy of the copy's name.
source recipes/offline_math.sh
REFLECTION_BASE=model/Qwen2.5-7B-Instruct
REFLECTION_LORA=model/Reflection_Model_Lora REFLECTION=model/Reflection_Model
LABELING=dataset/labeling REFLECTION_DATA=dataset/deepscaler_reflection_training.json SCORE=()
