#!/usr/bin/env bash
# From a fresh clone to a verdict: lint, format, types, tests.
#
#   bash scripts/test.sh [ARGUMENTS OF pytest]            the newest supported versions
#   bash scripts/test.sh --lowest [ARGUMENTS OF pytest]   the lowest ones, tests only
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

if [[ ${1:-} == --lowest ]]; then
    shift
    venv=.venv-lowest
    setup_lowest
else
    venv=.venv
    setup_newest
    say "ruff"
    "$venv/bin/ruff" check --quiet .
    "$venv/bin/ruff" format --check .
    say "mypy"
    "$venv/bin/mypy"
fi
say "pytest in $venv"
unset PYTHONDONTWRITEBYTECODE # else every process that a test starts compiles the package anew
exec "$venv/bin/python" -m pytest -q -n auto --maxprocesses 8 --dist loadgroup "$@" </dev/null
