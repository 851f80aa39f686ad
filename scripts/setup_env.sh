# Sourced by demo.sh and test.sh: makes a virtual environment in the clone, once.
#
#   setup_env VENV EXTRAS [CONSTRAINTS]     e.g.  setup_env .venv "[dev]" requirements/lowest.txt
#   setup_newest, setup_lowest              those of the tests: .venv, .venv-lowest
#
# A second call with the same pyproject.toml does nothing, and needs no network.
# PYTHON            the interpreter to start from (python3)
# DIT_ACCEL_TORCH   another torch: a requirement and pip options, e.g.
#                   "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"

set -euo pipefail

CPU_TORCH="torch==2.13.0"
CPU_INDEX="https://download.pytorch.org/whl/cpu" # on Linux, PyPI's own build is CUDA's, several GB

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '== %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

setup_env() {
    local venv=$1 extras=$2 constraints=${3:-}
    make_venv "$venv"
    install_torch "$venv"
    install_package "$venv" "$extras" "$constraints"
}

setup_newest() { setup_env .venv "[dev,peers,ray]"; }

setup_lowest() { setup_env .venv-lowest "[dev]" requirements/lowest.txt; }

make_venv() {
    local venv=$1 python=${PYTHON:-python3}
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
    command -v "$python" >/dev/null || die "no '$python' here: install Python 3.11 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "'$python' is $("$python" -V 2>&1), but 3.11 or newer is needed: set PYTHON to one"
    say "creating $venv"
    "$python" -m venv --clear "$venv" || die "could not create $venv (Debian, Ubuntu: apt install python3-venv)"
}

pip_quietly() {
    local venv=$1 log=$1/pip.log
    shift
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input -q "$@" </dev/null >"$log" 2>&1 && return
    grep -v '^WARNING' "$log" | tail -n 30 >&2
    die "pip $* failed (the whole output: $log)"
}

install_torch() {
    local venv=$1
    if [[ -n ${DIT_ACCEL_TORCH:-} ]]; then
        say "installing $DIT_ACCEL_TORCH"
        # shellcheck disable=SC2086  # options may follow the requirement
        pip_quietly "$venv" install $DIT_ACCEL_TORCH
    elif ! "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; then
        say "installing $CPU_TORCH for the CPU (DIT_ACCEL_TORCH names another)"
        local where=()
        [[ $(uname -s) == Linux ]] && where=(--extra-index-url "$CPU_INDEX" --retries 1)
        # Torch alone from the second index; what it needs comes with the package, from PyPI.
        pip_quietly "$venv" install --no-deps ${where[@]+"${where[@]}"} "$CPU_TORCH"
    fi
}

install_package() {
    local venv=$1 extras=$2 constraints=$3
    local stamp="$venv/installed${extras}" state
    state="$PWD $(cat pyproject.toml ${constraints:+"$constraints"} | cksum)"
    [[ -f $stamp && $(<"$stamp") == "$state" ]] && return
    say "installing dit-accel${extras}${constraints:+ with $constraints} into $venv"
    pip_quietly "$venv" install ${constraints:+-c "$constraints"} -e ".${extras}"
    printf '%s\n' "$state" >"$stamp"
}
