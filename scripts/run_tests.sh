#!/usr/bin/env bash
# Lint and test: makes the virtual environment, or reuses it, then runs ruff, mypy and pytest.
#   bash scripts/run_tests.sh                  # everything but the long half of tests/faults, with real vLLM servers
#   bash scripts/run_tests.sh --fast           # unit tests only
#   bash scripts/run_tests.sh --faults         # all of tests/faults: servers, trainer and files are broken (half an hour)
#   bash scripts/run_tests.sh -k rewards -x    # other arguments go to pytest
# Variable: VENV, as in scripts/setup.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
tests=tests
if [[ ${1:-} == --fast ]]; then
    tests=tests/unit
    shift
elif [[ ${1:-} == --faults ]]; then
    tests=tests/faults
    shift
    set -- -m faults "$@"
fi

bash scripts/setup.sh
begin=$SECONDS
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
echo "run_tests: ruff and mypy, $((SECONDS - begin)) s"
begin=$SECONDS
"$VENV/bin/python" -m pytest "$tests" --durations=10 "$@"
echo "run_tests: pytest, $((SECONDS - begin)) s"
