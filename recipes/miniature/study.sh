# shellcheck shell=bash disable=SC2154 # variables of scripts/study.sh, which sources this
# Made before the study of the miniature, unless the quickstart has: reflection model and threshold.
MEASURED=output/Miniature-LRM/train_rl_math_cot

prepare() {
    local lora=output/miniature/reflection_model_lora merged=output/miniature/reflection_model
    TRAINER+=(--tokens_per_reflection_file "$MEASURED.scores.json")
    if [[ -f $MEASURED.scores.json && -f $merged/config.json ]]; then
        return
    fi
    attend python -m generation.generate --config recipes/generation/miniature.yaml --split math_cot \
        --qaf dataset/miniature/train_rl.json --qaf_limit 150 --n_generate_sample 4 --model_dir model/Miniature-LRM
    attend python -m generation.math_verify_all "$MEASURED.json" --model_dir model/Miniature-LRM --word_bounded \
        --reflection_quantile 0.2
    attend python -m miniature.label "$MEASURED.json" --out output/miniature/reflection_training.json "${REPLY[@]}"
    attend python -m rea_rl.sft --config recipes/miniature/config_reflection_model.yaml
    attend python -m rea_rl.merge_lora model/Miniature-Instruct "$lora" "$merged"
}
