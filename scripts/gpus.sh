# shellcheck shell=bash
# Which GPUs a script may use; common.sh and setup.sh source it, and have a function `die`.

# visible_gpus: the GPUs that CUDA would see, one a line: indices, or their names in CUDA_VISIBLE_DEVICES (UUIDs, MIG
# devices, and beginnings of these). Empty it hides all GPUs, and -1 those behind it. Dies of a name that is no GPU's.
visible_gpus() {
    local listed count name seen=,
    listed=$(nvidia-smi -L 2>/dev/null || true)
    count=$(grep -c '^GPU' <<<"$listed" || true) # MIG devices are listed below their GPU
    if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
        seq 0 $((count - 1))
        return
    fi
    while IFS= read -rd, name; do
        name=${name//[[:space:]]/}
        case $name in
            -1 | NoDevFiles | '') return ;; # the second is Slurm's word
            GPU-* | MIG-*) grep -qiF "UUID: $name" <<<"$listed" || no_gpu "$name" "$count" ;;
            *[!0-9]*) no_gpu "$name" "$count" ;;
            *) ((10#$name < count)) || no_gpu "$name" "$count" ;;
        esac
        [[ $seen != *,$name,* ]] || die "CUDA_VISIBLE_DEVICES names $name twice, for which CUDA hides all GPUs; name it once"
        seen+=$name,
        echo "$name"
    done <<<"$CUDA_VISIBLE_DEVICES,"
}

no_gpu() {
    die "CUDA_VISIBLE_DEVICES names $1, but nvidia-smi lists no such GPU among its $2; correct it, leave it out for all GPUs," \
        "or make it empty for none"
}
