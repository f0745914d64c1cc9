# shellcheck shell=bash
# What the launchers share; they source it. Variables that may be set:
#   RECIPE_SET         folder under recipes/ (default DeepSeek-R1-Distill-Qwen-7B; miniature is the embedded model)
#   CONFIG_SUFFIX      recipe of that set, recipes/$RECIPE_SET/config_$CONFIG_SUFFIX.yaml (default: the launcher's own)
#   NUM_GPUS           3: GPUs 0 and 1 train, GPU 2 serves both models; 1: GPU 0 does all; 0: the CPU does all
#                      (default: the most of these that the machine has)
#   NUM_PROCESSES      training processes (default: 2 with three GPUs, else 1); the prompts per step stay the recipe's
#   ACCELERATE_CONFIG  file under recipes/accelerate_configs for several processes (default zero2, on the CPU cpu)
#   SERVER_MEMORY      share of the serving GPU for each server (default 0.45, with one GPU 0.25)
#   SERVER_RESTARTS    times that a server that ended by itself is started again (default 3)
#   MODEL              what both servers serve instead of the recipe's models (smoke_real.sh sets it)
#   VENV               virtual environment (default .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
export VENV PATH=$VENV/bin:$PATH
RECIPE_SET=${RECIPE_SET:-DeepSeek-R1-Distill-Qwen-7B}
SERVERS=() # process ids
HELPERS=() # process ids of what else runs in the background

die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# set_recipe VARIANT: sets RECIPE
set_recipe() {
    [[ -x $VENV/bin/python ]] || die "there is no $VENV; run: bash scripts/setup.sh"
    RECIPE=recipes/$RECIPE_SET/config_${CONFIG_SUFFIX:-$1}.yaml
    [[ -f $RECIPE ]] || die "there is no $RECIPE; see recipes/ for RECIPE_SET and CONFIG_SUFFIX"
}

recipe_value() { python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))[sys.argv[2]])' "$RECIPE" "$1"; }

# place: sets NUM_GPUS, NUM_PROCESSES, TRAIN_GPUS, SERVE_ARGS and ACCELERATE_CONFIG
place() {
    local found
    found=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
    NUM_GPUS=${NUM_GPUS:-$((found >= 3 ? 3 : found > 0))}
    ((NUM_GPUS <= found)) || die "NUM_GPUS is $NUM_GPUS, but nvidia-smi lists $found; set it to 3, 1, or 0 for the CPU"
    case $NUM_GPUS in
        3) TRAIN_GPUS=0,1 SERVE_ARGS=(--device cuda --gpu 2 --gpu_memory_utilization "${SERVER_MEMORY:-0.45}") ;;
        1) TRAIN_GPUS=0 SERVE_ARGS=(--device cuda --gpu 0 --gpu_memory_utilization "${SERVER_MEMORY:-0.25}") ;;
        0) TRAIN_GPUS='' SERVE_ARGS=(--device cpu) ;;
        *) die "NUM_GPUS is $NUM_GPUS; it must be 3, 1, or 0 for the CPU" ;;
    esac
    SERVE_ARGS+=(--max_restarts "${SERVER_RESTARTS:-3}")
    [[ -z ${MODEL:-} ]] || SERVE_ARGS+=(--model "$MODEL")
    NUM_PROCESSES=${NUM_PROCESSES:-$((NUM_GPUS == 3 ? 2 : 1))}
    ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-$([[ $NUM_GPUS == 0 ]] && echo cpu || echo zero2)}
}

# batch_args: sets BATCH_ARGS, so that a step has the recipe's prompts on another number of processes than it is for
batch_args() {
    local meant=2
    [[ $RECIPE_SET != miniature ]] || meant=1
    BATCH_ARGS=()
    if ((NUM_PROCESSES < meant)); then
        BATCH_ARGS=(--gradient_accumulation_steps $(($(recipe_value gradient_accumulation_steps) * meant / NUM_PROCESSES)))
    elif ((NUM_PROCESSES > meant)); then
        BATCH_ARGS=(--per_device_train_batch_size $(($(recipe_value per_device_train_batch_size) * meant / NUM_PROCESSES)))
    fi
}

# serve ROLE PORT GPU [OPTIONS]: one server in the foreground
serve() {
    (($# >= 3)) || die "usage: bash $0 PORT GPU [OPTIONS of rea_rl.vllm_server], where GPU is an index, or cpu"
    set_recipe ReflectRL
    SERVE_ARGS=(--device cuda --gpu "$3" --gpu_memory_utilization "${SERVER_MEMORY:-0.45}")
    [[ $3 != cpu ]] || SERVE_ARGS=(--device cpu)
    SERVE_ARGS+=(--max_restarts "${SERVER_RESTARTS:-3}")
    exec python -m rea_rl.vllm_server --recipe "$RECIPE" --role "$1" --port "$2" "${SERVE_ARGS[@]}" "${@:4}"
}

# wait_ready ROLE: until the server answers; stops the script if any server has ended instead
wait_ready() {
    python -m rea_rl.vllm_server --recipe "$RECIPE" "${SERVE_ARGS[@]}" --role "$1" --wait &
    HELPERS+=($!)
    wait -n "$!" "${SERVERS[@]}" || die "the servers are not up; the reason is above"
}

# start_servers ROLE...: on a GPU one after the other, since each measures the memory that is free
start_servers() {
    local role
    for role in "$@"; do
        python -m rea_rl.vllm_server --recipe "$RECIPE" "${SERVE_ARGS[@]}" --role "$role" --dry_run >/dev/null
    done
    for role in "$@"; do
        python -m rea_rl.vllm_server --recipe "$RECIPE" "${SERVE_ARGS[@]}" --role "$role" &
        SERVERS+=($!)
        [[ $NUM_GPUS == 0 ]] || wait_ready "$role"
    done
    for role in "$@"; do
        [[ $NUM_GPUS != 0 ]] || wait_ready "$role"
    done
}

# stop_all: end what this script started, by process id
stop_all() {
    local pid
    trap - EXIT INT TERM
    for pid in "${HELPERS[@]}" "${SERVERS[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait
}

# launch VARIANT "ROLE..." [OPTIONS of rea_rl.grpo]: servers, training, end of the servers
launch() {
    local roles command=(python -m rea_rl.grpo)
    set_recipe "$1"
    read -ra roles <<<"$2"
    place
    batch_args
    echo "$(basename "$0"): $RECIPE, $NUM_GPUS GPUs, $NUM_PROCESSES training processes, servers: $2"
    trap stop_all EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    start_servers "${roles[@]}"
    if ((NUM_PROCESSES > 1)); then
        command=(accelerate launch --config_file "recipes/accelerate_configs/$ACCELERATE_CONFIG.yaml"
            --num_processes "$NUM_PROCESSES" -m rea_rl.grpo)
    fi
    CUDA_VISIBLE_DEVICES=$TRAIN_GPUS "${command[@]}" --config "$RECIPE" "${BATCH_ARGS[@]}" \
        --use_cpu "$([[ $NUM_GPUS == 0 ]] && echo true || echo false)" "${@:3}" &
    HELPERS+=($!)
    wait "$!"
}
