#!/usr/bin/env bash
# Serve the reflection model in the foreground, as its recipe names it.
#   bash scripts/vllm_reflection.sh PORT GPU [OPTIONS]           # e.g. 12346 2
#   RECIPE_SET=miniature bash scripts/vllm_reflection.sh 12346 cpu
# OPTIONS are those of rea_rl.vllm_server (--model, --max_model_len ...) or of vLLM; variables are in scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
serve reflection "$@"
