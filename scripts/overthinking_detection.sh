#!/usr/bin/env bash
# Overthinking detection on held-out problems: the judge finds the result of each response; it is cut there, and at
# random with the same budget, and finished. Ends with a table and a picture.
#   bash scripts/overthinking_detection.sh
#   RECIPE_SET=miniature bash scripts/overthinking_detection.sh    # the oracle is the judge
# Variables are in scripts/offline.sh and scripts/common.sh. Stages whose result is complete are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/offline.sh"
no_options "$@"
set_recipe reflection_model
sample_eval
judge
compare "$WORK/overthinking_detection" --judge_cuts "$JUDGE_CUTS"
