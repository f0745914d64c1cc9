# shellcheck shell=bash
# What the launchers share; they source it. Variables that may be set:
#   RECIPE_SET         folder under recipes/ (default DeepSeek-R1-Distill-Qwen-7B; miniature is the embedded model)
#   CONFIG_SUFFIX      recipe of that set, recipes/$RECIPE_SET/config_$CONFIG_SUFFIX.yaml (default: the launcher's own)
#   NUM_GPUS           3: GPUs 0 and 1 train, GPU 2 serves both models; 1: GPU 0 does all; 0: the CPU does all
#                      (default: the most of these that the machine has); of CUDA_VISIBLE_DEVICES, if that is set:
#                      empty or -1 hides all GPUs
#   NUM_PROCESSES      training processes (default: 2 with three GPUs, else 1); the prompts per step stay the recipe's.
#                      Needed with a recipe without prompts_per_step, whose batch keys are then taken for so many
#   ACCELERATE_CONFIG  file under recipes/accelerate_configs for several processes (default ddp, on the CPU cpu; zero2
#                      if all weights are trained)
#   REFLECTION_GPU     with three GPUs: 2, the policy server's (default), or 1, and GPU 0 trains alone; a rollout is
#                      then faster, see docs/performance.md
#   SERVER_MEMORY      share of its GPU for each server (default 0.45; 0.25 with one GPU; 0.85 for a server alone on one)
#   SERVER_CONTEXT     context of both servers in tokens (default: their models')
#   SERVER_RESTARTS    times an hour that a server that ended by itself is started again (default 3)
#   VENV               virtual environment (default .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
export VENV PATH=$VENV/bin:$PATH
source scripts/gpus.sh
GIVEN_PROCESSES=${NUM_PROCESSES:-}
RECIPE_SET=${RECIPE_SET:-DeepSeek-R1-Distill-Qwen-7B}
SERVERS=() # process ids
declare -A SERVER_OF=() # the same by role
HELPERS=() # process ids of other background programs
ATTENDED='' # process group that `attend` waits for
STOP_SECONDS=120 # that a process has to end: a training finishes its step and writes a checkpoint
POLICY_ARGS=() REFLECTION_ARGS=() # of one server only
LABEL_ARGS=() # of the training

die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# set_recipe VARIANT: sets RECIPE
set_recipe() {
    [[ -x $VENV/bin/python ]] || die "$VENV is missing; run: bash scripts/setup.sh"
    RECIPE=recipes/$RECIPE_SET/config_${CONFIG_SUFFIX:-$1}.yaml
    [[ -f $RECIPE ]] || die "$RECIPE is missing; see recipes/ for RECIPE_SET and CONFIG_SUFFIX"
}

# recipe_value KEY [DEFAULT]: its value in the recipe
recipe_value() {
    python - "$RECIPE" "$@" <<'PY'
import sys, yaml
path, key, *default = sys.argv[1:]
value = yaml.safe_load(open(path)).get(key, *default)
print(sys.exit(f"error: {path} has no {key}; give it a value") if value is None else value)
PY
}

# place: sets NUM_GPUS, NUM_VISIBLE, NUM_PROCESSES, TRAIN_GPUS, SERVE_ARGS, LABEL_ARGS and ACCELERATE_CONFIG
place() {
    local gpus names=''
    [[ ${NUM_GPUS:-} == 0 ]] || names=$(visible_gpus)
    mapfile -t gpus < <(printf %s "${names:+$names$'\n'}")
    NUM_VISIBLE=${#gpus[@]}
    NUM_GPUS=${NUM_GPUS:-$((NUM_VISIBLE >= 3 ? 3 : NUM_VISIBLE > 0))}
    [[ $NUM_GPUS != *[!0-9]* && $NUM_GPUS -le $NUM_VISIBLE ]] ||
        die "NUM_GPUS is $NUM_GPUS, but $NUM_VISIBLE are visible; set it to 3, 1, or 0 for the CPU"
    case $NUM_GPUS/${REFLECTION_GPU:=2} in
        3/2) TRAIN_GPUS=${gpus[0]},${gpus[1]} SERVE_ARGS=(--device cuda --gpu "${gpus[2]}" --gpu_memory_utilization "${SERVER_MEMORY:-0.45}") ;;
        3/1) TRAIN_GPUS=${gpus[0]} SERVE_ARGS=(--device cuda --gpu "${gpus[2]}" --gpu_memory_utilization "${SERVER_MEMORY:-0.85}") ;;
        3/*) die "REFLECTION_GPU is $REFLECTION_GPU; it must be 1 or 2, since GPU 0 trains" ;;
        1/*) TRAIN_GPUS=${gpus[0]} SERVE_ARGS=(--device cuda --gpu "${gpus[0]}" --gpu_memory_utilization "${SERVER_MEMORY:-0.25}") ;;
        0/*) TRAIN_GPUS='' SERVE_ARGS=(--device cpu) ;;
        *) die "NUM_GPUS is $NUM_GPUS; it must be 3, 1, or 0 for the CPU" ;;
    esac
    SERVE_ARGS+=(--max_restarts "${SERVER_RESTARTS:-3}")
    [[ -z ${SERVER_CONTEXT:-} ]] || SERVE_ARGS+=(--max_model_len "$SERVER_CONTEXT")
    NUM_PROCESSES=${NUM_PROCESSES:-$([[ $TRAIN_GPUS == *,* ]] && echo 2 || echo 1)}
    ((NUM_GPUS == 0 || NUM_PROCESSES <= $([[ $TRAIN_GPUS == *,* ]] && echo 2 || echo 1))) ||
        die "NUM_PROCESSES is $NUM_PROCESSES, but the GPUs that train are $TRAIN_GPUS; give one process for each"
    [[ $NUM_GPUS/$REFLECTION_GPU != 3/1 ]] || LABEL_ARGS=(--stage_batch_size 1) # no response waits for others
    [[ $NUM_GPUS != 3 ]] || REFLECTION_ARGS+=(--gpu "${gpus[$REFLECTION_GPU]}")
    ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-$(default_config)}
}

# default_config: of an adapter ZeRO-2 shares out half a gigabyte, and its checkpoints are for one number of processes only
default_config() {
    if [[ $NUM_GPUS == 0 ]]; then
        echo cpu
    else
        [[ $(recipe_value use_peft False) == True ]] && echo ddp || echo zero2
    fi
}

# check_batch [OPTIONS of the training]: dies unless a step has the recipe's rows on NUM_PROCESSES; without them in the recipe, NUM_PROCESSES must be
# given, and its batch keys are taken for so many
check_batch() {
    local key rows=''
    for key in prompts_per_step rows_per_step; do
        rows=$(option $key "$@")
        rows=${rows:-$(recipe_value $key '')}
        [[ -z $rows ]] || break
    done
    [[ -n $rows || -n $GIVEN_PROCESSES ]] || die "$RECIPE has no prompts_per_step (of supervised programs: rows_per_step), \
so that its batch on $NUM_PROCESSES processes is not known; give that key, or NUM_PROCESSES"
    [[ -z $rows ]] || ((rows % NUM_PROCESSES == 0)) ||
        die "NUM_PROCESSES is $NUM_PROCESSES, which does not divide $key of $RECIPE, $rows; give a divisor"
}

# option NAME OPTION...: value of the last --NAME among the options, or nothing
option() {
    local name=$1 value=''
    shift
    while (($#)); do
        [[ $1 != "--$name" ]] || value=${2:-}
        [[ $1 != "--$name="* ]] || value=${1#*=}
        shift
    done
    echo "$value"
}

# role_args ROLE: sets ROLE_ARGS: all of its server's, those that the other one has not last
role_args() {
    ROLE_ARGS=("${SERVE_ARGS[@]}" --role "$1")
    if [[ $1 == policy ]]; then
        ROLE_ARGS+=("${POLICY_ARGS[@]}")
    else
        ROLE_ARGS+=("${REFLECTION_ARGS[@]}")
    fi
}

# check_gpu GPU: dies unless it is cpu, or one or more GPUs of this machine, with commas
check_gpu() {
    local names
    [[ $1 != cpu ]] || return 0
    names=$(CUDA_VISIBLE_DEVICES=$1 visible_gpus)
    [[ -n $names ]] || die "the GPU is '$1'; it must be an index of nvidia-smi, or cpu"
}

# serve ROLE PORT GPU [OPTIONS]: one server in the foreground
serve() {
    (($# >= 3)) || die "usage: bash $0 PORT GPU [OPTIONS of rea_rl.vllm_server], where GPU is an index, or cpu"
    set_recipe ReflectRL
    check_gpu "$3"
    SERVE_ARGS=(--device cuda --gpu "$3" --gpu_memory_utilization "${SERVER_MEMORY:-0.45}")
    [[ $3 != cpu ]] || SERVE_ARGS=(--device cpu)
    SERVE_ARGS+=(--max_restarts "${SERVER_RESTARTS:-3}")
    exec python -m rea_rl.vllm_server --recipe "$RECIPE" --role "$1" --port "$2" "${SERVE_ARGS[@]}" "${@:4}"
}

# wait_ready ROLE: until the server answers; stops the script if any server has ended instead
wait_ready() {
    role_args "$1"
    python -m rea_rl.vllm_server --recipe "$RECIPE" "${ROLE_ARGS[@]}" --wait --launcher "${SERVER_OF[$1]}" &
    HELPERS=($!)
    wait -n "$!" "${SERVERS[@]}" || die "the servers are not up; the reason is above"
    HELPERS=()
}

# start_servers ROLE...: on a GPU one after the other, since each measures the memory that is free
start_servers() {
    local role
    for role in "$@"; do
        role_args "$role"
        python -m rea_rl.vllm_server --recipe "$RECIPE" "${ROLE_ARGS[@]}" --dry_run >/dev/null
    done
    for role in "$@"; do
        role_args "$role"
        python -m rea_rl.vllm_server --recipe "$RECIPE" "${ROLE_ARGS[@]}" &
        SERVERS+=($!) SERVER_OF[$role]=$!
        [[ $NUM_GPUS == 0 ]] || wait_ready "$role"
    done
    for role in "$@"; do
        [[ $NUM_GPUS != 0 ]] || wait_ready "$role"
    done
}

# attend COMMAND...: run it in a process group of its own, so that the end of this script ends all of it
attend() {
    set -m
    {
        trap 'exit 143' TERM # behind the command, which has the signal too
        "$@"
    } &
    set +m
    ATTENDED=$!
    wait "$ATTENDED"
    ATTENDED=
}

# stop_in_order: from now on, the end of this script ends all that it has started
stop_in_order() {
    trap stop_all EXIT
    trap 'exit 129' HUP # the terminal was closed
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# stop_all: end what this script started, by process id: a training, which writes a checkpoint, before its servers
stop_all() {
    trap - EXIT
    trap '' HUP INT TERM
    [[ -z $ATTENDED ]] || stop "-$ATTENDED"
    stop "${HELPERS[@]}"
    stop "${SERVERS[@]}"
}

# stop PID...: SIGTERM, and SIGKILL to what is left after STOP_SECONDS; a negative one is a process group, by its first process
stop() {
    local pid deadline=$((SECONDS + STOP_SECONDS))
    for pid in "$@"; do
        kill -- "$pid" 2>/dev/null || true
    done
    for pid in "$@"; do
        while kill -0 "${pid#-}" 2>/dev/null && ((SECONDS < deadline)); do
            sleep 0.1
        done
        kill -KILL -- "$pid" 2>/dev/null || true
    done
}

# launch VARIANT "ROLE..." [OPTIONS of rea_rl.grpo]: servers, training, end of the servers
launch() {
    local roles model where checked command=(python -m rea_rl.grpo)
    set_recipe "$1"
    read -ra roles <<<"$2"
    place
    # Models given to the trainer in place of the recipe's are the servers' too.
    model=$(option model_name_or_path "${@:3}")
    [[ -z $model ]] || POLICY_ARGS+=(--model "$model")
    model=$(option reflection_model "${@:3}")
    [[ -z $model ]] || REFLECTION_ARGS+=(--model "$model")
    check_batch "${@:3}"
    if ((NUM_PROCESSES > 1)); then
        command=(accelerate launch --config_file "recipes/accelerate_configs/$ACCELERATE_CONFIG.yaml"
            --num_processes "$NUM_PROCESSES" -m rea_rl.grpo)
    fi
    command+=(--config "$RECIPE" "${LABEL_ARGS[@]}"
        --use_cpu "$([[ $NUM_GPUS == 0 ]] && echo true || echo false)" "${@:3}")
    where="$NUM_GPUS of $NUM_VISIBLE visible GPUs"
    ((NUM_GPUS > 0)) || where="the CPU"
    echo "$(basename "$0"): $RECIPE on $where, processes that train: $NUM_PROCESSES, servers: $2"
    stop_in_order
    checked=$(CUDA_VISIBLE_DEVICES=$TRAIN_GPUS "${command[@]}" --dry_run) # mistakes are found before servers are up
    [[ $checked != *complete* && " ${*:3} " != *" --dry_run "* ]] || exit 0
    start_servers "${roles[@]}"
    CUDA_VISIBLE_DEVICES=$TRAIN_GPUS "${command[@]}" &
    HELPERS=($!)
    wait "$!"
}
