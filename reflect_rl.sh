#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/scripts/reflect_rl.sh" "$@"
