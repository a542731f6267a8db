#!/usr/bin/env bash
# The GPU suite and the benchmarks on a bare CUDA machine: no network, nothing installed into its Python.
#
#   ci/gpu.sh [--wheels DIR] [--site PATH] [--out DIR] [--tier quick|premerge|nightly] [--skip-benchmarks]
#             [--skip-verify] [-- further arguments of `sluicegate verify`]
#
# --site adds folders of unpacked packages, separated by colons, to PYTHONPATH: peers to measure against, for example.
# PYTHON names the interpreter (default: the first of python3, python3.12, python3.13, python3.11, python that has torch).
# Exit: that of `verify`; where it held, that of the benchmarks.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
value() { [ $# -ge 2 ] || { echo "gpu.sh: $1 needs a value" >&2; exit 2; }; }

wheels='' extra='' out=out/gpu tier=premerge benchmarks=1 verify=1
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) value "$@"; wheels=$2; shift 2 ;;
        --site) value "$@"; extra=$2; shift 2 ;;
        --out) value "$@"; out=$2; shift 2 ;;
        --tier) value "$@"; tier=$2; shift 2 ;;
        --skip-benchmarks) benchmarks=0; shift ;;
        --skip-verify) verify=0; shift ;;
        --) shift; break ;;
        -h | --help) usage; exit 0 ;;
        *) echo "gpu.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
done
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "gpu.sh: --wheels: expected a folder, got $wheels" >&2; exit 2; }
    wheels=$(cd "$wheels" && pwd)
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.12 python3.13 python3.11 python; do
        # find_spec, not import: torch takes seconds to import, and is imported below anyway.
        if "$candidate" -c 'import sys, importlib.util as u; raise SystemExit(sys.version_info < (3, 11) or not u.find_spec("torch"))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || { echo "gpu.sh: wanted a Python 3.11 or newer that has torch, found none; name one: PYTHON=..." >&2; exit 2; }

site=$(mktemp -d "${TMPDIR:-/tmp}/sluicegate-site.XXXXXX")
trap 'rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
    shopt -s nullglob
    files=("$wheels"/*.whl)
    [ ${#files[@]} -gt 0 ] || { echo "gpu.sh: no wheel in $wheels" >&2; exit 2; }
    # --no-deps: what the machine has (torch above all) must not be shadowed by a second copy.
    "$python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps --target "$site" "${files[@]}"
fi
"$python" ci/entry_points.py "$site" >/dev/null
export PYTHONPATH="$root:$site${extra:+:$extra}${PYTHONPATH:+:$PYTHONPATH}"
# On a GPU the kernels are compiled; a variable left over from a CPU session would interpret them.
unset TRITON_INTERPRET

"$python" - <<'CHECK'
import importlib.util
import sys

import torch

wanted = ["triton", "numpy", "hypothesis", "pytest", "xdist", "rich", "typer", "jinja2", "matplotlib", "yaml"]
missing = [name for name in wanted if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"gpu.sh: missing {', '.join(missing)}: give their wheels with --wheels DIR")
if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: torch {torch.__version__} sees no CUDA device")
print(f"== Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
CHECK

status=0
if [ "$verify" = 1 ]; then
    "$python" -m harness.cli verify --tier "$tier" --device cuda --out "$out/verify" "$@" || status=$?
fi
if [ "$benchmarks" = 1 ]; then
    # Measured even after a failure: the figures say which change to look at. But the failure is what is reported.
    measured=0
    "$python" -m benchmarks --out "$out/benchmarks" || measured=$?
    mkdir -p benchmarks/results
    find "$out/benchmarks" -maxdepth 1 \( -name '*.json' -o -name '*.svg' \) -exec cp {} benchmarks/results/ \;
    [ "$status" -ne 0 ] || status=$measured
fi
exit "$status"
