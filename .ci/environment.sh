# Sourced by the scripts beside it: a fresh environment in a folder that goes at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pip unpacks torch into its temporary folder: keep that beside the environment.
mkdir "$work/tmp"
export TMPDIR="$work/tmp"
export PIP_QUIET=1
# A process a core, each with one thread, shares two cores better than torch's threads.
export OMP_NUM_THREADS=1

section() {
    printf '\n=== [%4d s] %s ===\n' "$SECONDS" "$1"
}

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if "$candidate" -c \
            'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python >= 3.11 with venv and pip found: install one and run this again." >&2
    return 1
}

# What the README tells to run is what is run here: installation and tests.
readme_test_command() {
    local command='python -m pip install -e ".[test]" && python -m pytest'
    grep --quiet --fixed-strings --line-regexp "$command" README.md || {
        echo "README.md does not show the test command: $command" >&2
        return 1
    }
    bash -c "$command"
}

section "Environment"
python=$(find_python)
"$python" -m venv "$work/venv"
# shellcheck source=/dev/null
source "$work/venv/bin/activate"
python --version
df -h "$work" | tail -n 1
if [[ -d ../shared/data ]]; then
    SK_CALEX_DATA=$(cd ../shared/data && pwd)
    export SK_CALEX_DATA
fi
