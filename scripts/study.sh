#!/usr/bin/env bash
# The study: trains and evaluates all rows, and writes table, pictures and study.json to docs/study.
#   bash scripts/study.sh [miniature|RECIPE_SET] [OPTIONS of rea_rl.study] [-- OPTIONS of rea_rl.grpo]
#   bash scripts/study.sh miniature --rows base grpo grpo_len rea_rl --seeds 1 --eval_problems 300
#   bash scripts/study.sh miniature --jobs 8                                 # eight runs at a time, on a GPU
#   PAIRS=3 bash scripts/study.sh DeepSeek-R1-Distill-Qwen-7B --eval_dataset FILE    # on eight GPUs
#   bash scripts/study.sh miniature --policy_server URL1 URL2 --reflection_server URL3 URL4    # servers of your own
# Starts a policy server and a reflection server for all rows, and stops them. PAIRS is a number of such pairs; each has
# --jobs / PAIRS runs at a time (default 1), and each run trains on one of the GPUs that train. If there are fewer
# reflection servers, pairs share them. recipes/miniature/study.sh first makes the reflection model and the threshold of
# the reflection reward, unless the quickstart has. Run it again to continue after an interruption: finished runs are
# skipped. With --dry_run it only says what is left. Variables are in scripts/common.sh.
if (($#)) && [[ $1 != -* ]]; then
    RECIPE_SET=$1
    shift
fi
RECIPE_SET=${RECIPE_SET:-miniature}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# prepare: what the recipe set's study needs first
prepare() { :; }
if [[ -f recipes/$RECIPE_SET/study.sh ]]; then
    # shellcheck source=../recipes/miniature/study.sh
    source "recipes/$RECIPE_SET/study.sh"
fi

STUDY=() PAIRS=${PAIRS:-1} JOBS=''
[[ $PAIRS =~ ^[1-9][0-9]*$ ]] || die "PAIRS is '$PAIRS'; give the number of pairs of servers, 1 or more"
while (($#)) && [[ $1 != -- ]]; do
    [[ $1 != --jobs ]] || JOBS=${2:-none}
    [[ $1 != --jobs=* ]] || JOBS=${1#*=}
    STUDY+=("$1")
    shift
done
JOBS=${JOBS:-$PAIRS}
[[ $JOBS =~ ^[1-9][0-9]*$ ]] || die "--jobs is '$JOBS'; give the number of runs at a time, 1 or more"
set_recipe ReflectRL
SERVERS_PER_ROLE=$PAIRS place "policy reflection" "${STUDY[@]}" "${@:2}"
policies=$(printf '%s\n' "${PLANNED[@]}" | grep -c '^policy ' || true)
((policies == 0 || policies >= PAIRS)) ||
    die "PAIRS is $PAIRS, but the plan has $policies policy servers: policy GPUs / POLICY_TP; lower it, or name POLICY_GPUS"
SERVE_ARGS+=(--max_loras $((JOBS * 2))) # a run may sample from a version while it loads the next
[[ $NUM_GPUS != 0 ]] || export NUM_GPUS # to the scripts of rows
[[ $NUM_GPUS != 1 ]] || export ENGINE_MEMORY=${ENGINE_MEMORY:-0.3} # of the rows that sample without the servers
if ((JOBS > 1)) && [[ $TRAIN_GPUS == *,* ]]; then # runs at a time take a GPU each
    NUM_PROCESSES=1
    read -ra names <<<"${TRAIN_GPUS//,/ }"
    STUDY+=(--train_gpus "${names[@]}")
fi
STUDY+=(--num_processes "$NUM_PROCESSES")
OPTIONS=()
# addresses: servers are options of the study, which deals them out; what is left is the trainings'
addresses() {
    local word key=''
    for word in "${PLAN_ARGS[@]}"; do
        [[ $word != --* ]] || key=$word
        if [[ $key == --*_server ]]; then STUDY+=("$word"); else OPTIONS+=("$word"); fi
    done
}
addresses
training rea_rl.grpo
TRAINER=("${COMMAND[@]}" "${OPTIONS[@]}" --use_cpu "$([[ $NUM_GPUS == 0 ]] && echo true || echo false)")
stop_in_order
echo "$PLAN"
python -m rea_rl.study --recipe_set "$RECIPE_SET" "${STUDY[@]}" --dry_run -- "${TRAINER[@]}" "${@:2}"
[[ " ${STUDY[*]} " != *" --dry_run "* ]] || exit 0
prepare
TRAINER+=("${@:2}")
start_servers
CUDA_VISIBLE_DEVICES=$TRAIN_GPUS python -m rea_rl.study --recipe_set "$RECIPE_SET" "${STUDY[@]}" -- "${TRAINER[@]}" &
HELPERS=($!)
wait "$!"
