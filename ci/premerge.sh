#!/usr/bin/env bash
# The premerge job: set-up, lint, compile, tests, verify, serve, faults. Everything runs even where something failed, so that one run shows
# all there is to mend; the job is red if anything was. Variables of the Makefile are passed through the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=()
stage() {
    local name=$1 started=$SECONDS
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    if "$@"; then
        printf '=== %s: passed in %d s\n' "$name" $((SECONDS - started))
    else
        printf '=== %s: FAILED (exit %d) after %d s\n' "$name" $? $((SECONDS - started))
        failed+=("$name")
    fi
}

# Nothing below means anything without it.
stage setup make setup
[ ${#failed[@]} -eq 0 ] || exit 1

stage lint make lint
# Two architectures and one dtype: the compiler takes minutes for all. `make compile` is the whole matrix, for every night.
stage compile make compile ARGS="--arch sm_80 --arch sm_90 --dtype bfloat16"
stage test make test
stage verify make verify
# A fifth of what `sluicegate serve` does by itself.
stage serve make serve ARGS="--device cpu --requests 200"
# That it is green says something only if it would have been red: planted faults, with the seed they were chosen by. A slow machine gets the time.
stage faults make faults ARGS="--device cpu --tier premerge --seed 5 --time-limit 240 --list ci/premerge_faults.txt"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\npremerge: FAILED: %s\n' "${failed[*]}"
    exit 1
fi
printf '\npremerge: passed in %d s\n' "$SECONDS"
