#!/usr/bin/env bash
# Whether training and servers compute right on this machine; to be run once after installing; it takes a few minutes.
#   bash scripts/check_gpu.sh          # the first visible GPU
#   bash scripts/check_gpu.sh --cpu
# Ends with a table; exit code 1 if anything is wrong. Variables: VENV (default .venv), CUDA_VISIBLE_DEVICES.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ -x $VENV/bin/python ]] || die "$VENV is missing; run: bash scripts/setup.sh"
[[ " $* " != *" --cpu "* ]] || export CUDA_VISIBLE_DEVICES=''
exec python -m rea_rl.check_gpu "$@"
