#!/usr/bin/env bash
# From a fresh clone to two clips, uncached and accelerated, and their comparison.
#
#   bash scripts/demo.sh [ARGUMENTS OF dit-accel]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env .venv ""
if (($# == 0)); then
    # The same clip again takes the place of the first.
    set -- generate "a red circle moving right on a plain gray background" --compare --overwrite
fi
exec .venv/bin/dit-accel "$@"
