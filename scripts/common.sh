# shellcheck shell=bash
# Shared by the launchers, which source it. Variables that may be set:
#   RECIPE_SET         folder under recipes/ (default DeepSeek-R1-Distill-Qwen-7B; miniature is the embedded model)
#   CONFIG_SUFFIX      recipe of that set, recipes/$RECIPE_SET/config_$CONFIG_SUFFIX.yaml (default: the launcher's own)
#   NUM_GPUS           use the first so many of the visible GPUs (default: all); 0: the CPU. Visible are those of
#                      CUDA_VISIBLE_DEVICES, if that is set: empty or -1 hides all
#   TRAIN_GPUS, POLICY_GPUS, REFLECTION_GPUS
#                      GPUs that train, and that serve, with commas: 0,1,2,3 (default by their number, see docs/scaling.md;
#                      if only some are given, the others take what is left)
#   POLICY_TP, REFLECTION_TP   GPUs of each server (default 1), so that POLICY_GPUS=4,5,6 are three servers
#   NUM_PROCESSES      training processes of this machine (default: one for each GPU that trains); the prompts of a step
#                      stay the recipe's. Needed with a recipe without prompts_per_step, whose batch keys are then taken
#                      for so many
#   ACCELERATE_CONFIG  file under recipes/accelerate_configs for several processes (default ddp, on the CPU cpu; zero2
#                      if all weights are trained)
#   REFLECTION_GPU     with three GPUs: 2, the policy server's (default), or 1, and GPU 0 trains alone; a rollout is
#                      then faster, see docs/performance.md
#   SERVER_MEMORY      share of its GPU for each server (default 0.85 alone, 0.45 next to the other server, 0.25 next to
#                      the training)
#   NUM_MACHINES, MACHINE_RANK, MAIN_ADDRESS, MAIN_PORT
#                      several hosts, each with this launcher and these variables (default 1, 0, -, 29500). They share
#                      output_dir; the key of all servers is VLLM_API_KEY
#   SERVER_HOST        address that the servers of this host listen on (default: the recipe's; with several hosts the
#                      host's name)
#   SERVER_PORT        port of its first server (default: the recipe's)
#   SERVER_CONTEXT     context of both servers in tokens (default: their models')
#   SERVER_COMPILE     false: servers on GPUs compile nothing, and are ready sooner (default true)
#   SERVER_CACHE_GIB   key-value cache of each server in GiB (default: measured, one server of a GPU after the other). If
#                      it is given, servers of one GPU start side by side
#   SERVER_RESTARTS    times an hour that a server that ended by itself is started again (default 3)
#   REFLECTION_REPLY   form of the replies that a reflection model is trained on: long (default), or compact with one token
#                      a label. Whatever asks the model later sees it in its folder
#   VENV               virtual environment (default .venv)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
export VENV PATH=$VENV/bin:$PATH
source scripts/gpus.sh
GIVEN=() # what was wished, since the plan sets variables of the same names
for name in NUM_GPUS NUM_PROCESSES TRAIN_GPUS; do
    GIVEN+=("$name=${!name:-}")
done
NUM_MACHINES=${NUM_MACHINES:-1} MACHINE_RANK=${MACHINE_RANK:-0}
RECIPE_SET=${RECIPE_SET:-DeepSeek-R1-Distill-Qwen-7B}
SERVERS=() # process ids
declare -A SERVER_OF=() # the same by planned server
HELPERS=() # process ids of other background programs
ATTENDED='' # process group that `attend` waits for
STOP_SECONDS=120 # that a process has to end: a training finishes its step and writes a checkpoint
REPLY=(${REFLECTION_REPLY:+--reflection_reply "$REFLECTION_REPLY"}) # of the training file
SERVE_ARGS=() POLICY_ARGS=() REFLECTION_ARGS=() # of all servers, and of those of a role
PLANNED=() # servers to start: role, port, GPUs with commas, share of memory, seed (- for none), servers before it there
PLAN_ARGS=() # of the training

die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# no_options "$@": dies of any; for scripts that take variables only
no_options() { (($# == 0)) || die "unknown arguments: $*; it takes variables only, see bash $0 --help"; }

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

# place "ROLE..." [OPTIONS of the training]: sets what the plan says (rea_rl.run.placement): NUM_GPUS that are used,
# TRAIN_GPUS, NUM_PROCESSES, PLANNED, PLAN_ARGS; and PLAN, its lines
place() {
    local names='' plan
    [[ $NUM_MACHINES =~ ^[1-9][0-9]*$ ]] || die "NUM_MACHINES is '$NUM_MACHINES'; give the number of hosts, 1 or more"
    if ((NUM_MACHINES > 1)); then
        export SERVER_HOST=${SERVER_HOST:-$(hostname)}
        [[ -n ${MAIN_ADDRESS:-} ]] || die "NUM_MACHINES is $NUM_MACHINES; give MAIN_ADDRESS, the host of machine 0"
    fi
    [[ ${GIVEN[0]} == NUM_GPUS=0 ]] || names=$(visible_gpus)
    plan=$(env "${GIVEN[@]}" python -m rea_rl.run.placement "$RECIPE" "$@" <<<"$names") || exit 1
    PLAN=${plan%%$'\n'---$'\n'*}
    eval "${plan##*$'\n'---$'\n'}"
    SERVE_ARGS=(--max_restarts "${SERVER_RESTARTS:-3}")
    [[ -z ${SERVER_CONTEXT:-} ]] || SERVE_ARGS+=(--max_model_len "$SERVER_CONTEXT")
    [[ -z ${SERVER_HOST:-} ]] || SERVE_ARGS+=(--host "$SERVER_HOST")
    [[ -z ${SERVER_COMPILE:-} ]] || SERVE_ARGS+=(--compile "$SERVER_COMPILE")
    [[ -z ${SERVER_CACHE_GIB:-} ]] || SERVE_ARGS+=(--kv_cache_gib "$SERVER_CACHE_GIB")
    ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-$(default_config)}
    [[ -f recipes/accelerate_configs/$ACCELERATE_CONFIG.yaml ]] ||
        die "ACCELERATE_CONFIG is '$ACCELERATE_CONFIG'; it must be one of $(cd recipes/accelerate_configs && echo *.yaml | sed 's/\.yaml//g')"
}

# default_config: of an adapter ZeRO-2 shares out half a gigabyte, and its checkpoints are for one number of processes only
default_config() {
    if [[ $NUM_GPUS == 0 ]]; then
        echo cpu
    else
        [[ $(recipe_value use_peft False) == True ]] && echo ddp || echo zero2
    fi
}

# training MODULE: sets COMMAND, which runs it on all training processes
training() {
    COMMAND=(python -m "$1")
    ((NUM_PROCESSES > 1)) || return 0
    COMMAND=(python -m rea_rl.run.ranks --config_file "recipes/accelerate_configs/$ACCELERATE_CONFIG.yaml"
        --num_processes "$NUM_PROCESSES")
    ((NUM_MACHINES == 1)) || COMMAND+=(--num_machines "$NUM_MACHINES" --machine_rank "$MACHINE_RANK"
        --main_process_ip "$MAIN_ADDRESS" --main_process_port "${MAIN_PORT:-29500}")
    COMMAND+=(-m "$1")
}

# option NAME OPTION...: value of the last --NAME among the options, or nothing
option() {
    local name=$1 word value=''
    shift
    while (($#)); do
        word=${1%%=*}
        if [[ ${word//-/_} == "__$name" ]]; then # --max-steps is --max_steps, too
            if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2:-}; fi
        fi
        shift
    done
    echo "$value"
}

# server_args SERVER: sets SERVER_ARGS, all of a planned server's
server_args() {
    local role port gpus memory seed
    read -r role port gpus memory seed _ <<<"$1"
    SERVER_ARGS=(--device cpu)
    [[ $gpus == - ]] || SERVER_ARGS=(--device cuda --gpu "$gpus" --gpu_memory_utilization "$memory")
    SERVER_ARGS+=("${SERVE_ARGS[@]}" --role "$role" --port "$port")
    [[ $seed == - ]] || SERVER_ARGS+=(--seed "$seed")
    if [[ $role == policy ]]; then
        SERVER_ARGS+=("${POLICY_ARGS[@]}")
    else
        SERVER_ARGS+=("${REFLECTION_ARGS[@]}")
    fi
}

# check_shard: dies unless SHARD is a share, i/n, or not given
check_shard() {
    local share='^([0-9]{1,9})/([0-9]{1,9})$'
    [[ -n ${SHARD:-} ]] || return 0
    if [[ $SHARD =~ $share ]] && ((10#${BASH_REMATCH[1]} > 0 && 10#${BASH_REMATCH[1]} <= 10#${BASH_REMATCH[2]})); then
        return
    fi
    die "SHARD is '$SHARD'; write the number of this share, from 1, and how many there are: 1/4"
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

# wait_ready SERVER: until it answers; stops the script if any server has ended instead
wait_ready() {
    server_args "$1"
    python -m rea_rl.vllm_server --recipe "$RECIPE" "${SERVER_ARGS[@]}" --wait --launcher "${SERVER_OF[$1]}" &
    HELPERS=($!)
    wait -n "$!" "${SERVERS[@]}" || die "the servers are not up; the reason is above"
    HELPERS=()
}

# turn_of SERVER: servers that start before it. Those on one GPU start one after the other, since each measures the memory
# that is free; side by side on the CPU, or if none measures
turn_of() {
    if [[ -z ${SERVER_CACHE_GIB:-} ]]; then
        echo "${1##* }"
    else
        echo 0
    fi
}

# start_servers: all that are planned
start_servers() {
    local server turn turns=0 now
    for server in "${PLANNED[@]}"; do
        server_args "$server"
        python -m rea_rl.vllm_server --recipe "$RECIPE" "${SERVER_ARGS[@]}" --dry_run >/dev/null
        turn=$(turn_of "$server")
        ((turn <= turns)) || turns=$turn
    done
    for ((turn = 0; turn <= turns; turn++)); do
        now=()
        for server in "${PLANNED[@]}"; do
            [[ $(turn_of "$server") == "$turn" ]] || continue
            server_args "$server"
            python -m rea_rl.vllm_server --recipe "$RECIPE" "${SERVER_ARGS[@]}" &
            SERVERS+=($!) SERVER_OF[$server]=$!
            now+=("$server")
        done
        for server in "${now[@]}"; do
            wait_ready "$server"
        done
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
    local model checked
    set_recipe "$1"
    place "$2" "${@:3}"
    # Models given to the trainer in place of the recipe's are the servers' too.
    model=$(option model_name_or_path "${@:3}")
    [[ -z $model ]] || POLICY_ARGS+=(--model "$model")
    model=$(option reflection_model "${@:3}")
    [[ -z $model ]] || REFLECTION_ARGS+=(--model "$model")
    echo "$(basename "$0"): $RECIPE"
    echo "$PLAN"
    local args=(--config "$RECIPE" "${PLAN_ARGS[@]}"
        --use_cpu "$([[ $NUM_GPUS == 0 ]] && echo true || echo false)" "${@:3}")
    if [[ " ${*:3} " == *" --dry_run "* ]]; then
        dry_run "${args[@]}"
    fi
    ((NUM_MACHINES == 1)) || getent ahosts "$MAIN_ADDRESS" >/dev/null ||
        die "MAIN_ADDRESS is '$MAIN_ADDRESS', which this host does not know; give the name or address of machine 0"
    training rea_rl.grpo
    COMMAND+=("${args[@]}")
    stop_in_order
    # mistakes are found before servers are up; several hosts find them together
    checked=$( ((NUM_MACHINES > 1)) || CUDA_VISIBLE_DEVICES=$TRAIN_GPUS "${COMMAND[@]}" --dry_run)
    [[ $checked != *complete* ]] || exit 0
    start_servers
    CUDA_VISIBLE_DEVICES=$TRAIN_GPUS "${COMMAND[@]}" &
    HELPERS=($!)
    wait "$!"
}

# dry_run OPTIONS...: checks the recipe further, in one process, if the files that it names are there; and ends
dry_run() {
    if ((${#MISSING[@]})); then
        echo "not checked further; missing:$(printf ' %s,' "${MISSING[@]}" | sed 's/,$//')"
    else
        CUDA_VISIBLE_DEVICES=${TRAIN_GPUS%%,*} python -m rea_rl.grpo "$@" >/dev/null
        echo "checked: recipe, models and problems; nothing was started"
    fi
    exit 0
}
