#!/usr/bin/env bash
# Serve the policy in the foreground, with its recipe's model and LoRA rank.
#   bash scripts/vllm.sh PORT GPU [OPTIONS]           # e.g. 12345 2
#   RECIPE_SET=miniature bash scripts/vllm.sh 12345 cpu
# OPTIONS are those of rea_rl.vllm_server (--model, --max_model_len ...) or of vLLM; variables are in scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
serve policy "$@"
