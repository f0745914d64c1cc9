# shellcheck shell=bash
# Which GPUs a script may use; common.sh and setup.sh source it, and have a function `die`.

# visible_gpus: the GPUs that CUDA would see, one a line: indices, or their names in CUDA_VISIBLE_DEVICES (UUIDs, MIG
# devices, and beginnings of these). Empty it hides all GPUs, and -1 those behind it. Dies of a name that is no GPU's, of
# one that several have, and of a GPU that is named twice, in whatever spelling.
visible_gpus() {
    local listed count name gpu seen=
    listed=$(nvidia-smi -L 2>/dev/null || true)
    count=$(grep -c '^GPU' <<<"$listed" || true) # MIG devices are listed below their GPU
    if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
        seq 0 $((count - 1))
        return
    fi
    while IFS= read -rd, name; do
        name=${name#"${name%%[![:space:]]*}"} name=${name%"${name##*[![:space:]]}"}
        case $name in
            -1 | NoDevFiles | '') return ;; # the second is Slurm's word
            GPU-* | MIG-*) gpu=$(grep -iF "UUID: $name" <<<"$listed" || true) ;;
            *[!0-9]* | ?????*) gpu= ;;
            *) name=$((10#$name)) gpu=$(grep '^GPU' <<<"$listed" | sed -n "$((10#$name + 1))p") ;;
        esac
        [[ -n $gpu ]] || no_gpu "$name, but nvidia-smi lists no such GPU among its $count"
        [[ $gpu != *$'\n'* ]] || no_gpu "$name, with which several GPUs begin"
        [[ $seen != *"$gpu"$'\n'* ]] || die "CUDA_VISIBLE_DEVICES names GPU $name twice, for which CUDA hides all GPUs; name it once"
        seen+=$gpu$'\n'
        echo "$name"
    done <<<"$CUDA_VISIBLE_DEVICES,"
}

no_gpu() { die "CUDA_VISIBLE_DEVICES names $1; correct it, leave it out for all GPUs, or make it empty for none"; }
