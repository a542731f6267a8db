#!/usr/bin/env bash
# Makes the environment that everything else runs in. Called by the Makefile; reads its variables from there.
#
#   PYTHON       interpreter to start from (>= 3.11); empty: the newest of python3.13 ... python3.11, python3 that fits
#   VENV         folder of the virtual environment; empty: install into PYTHON itself
#   TORCH        what to install where torch is missing, e.g. torch==2.13.0
#   TORCH_INDEX  package index to take torch from; empty: chosen below
#   TRITON       what to install where torch brought no Triton
#   EXTRAS       comma-separated extras of pyproject.toml
#   CPU_INDEX    where a machine without a GPU finds torch without CUDA
set -euo pipefail

PYTHON=${PYTHON:-}
VENV=${VENV:-}
TORCH=${TORCH:-torch==2.13.0}
TRITON=${TRITON:-triton==3.9.0}
TORCH_INDEX=${TORCH_INDEX:-}
EXTRAS=${EXTRAS:-}
CPU_INDEX=${CPU_INDEX:-https://download.pytorch.org/whl/cpu}

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[2m== %s\033[0m\n' "$*" >&2; }
new_enough() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; }

if [ -z "$PYTHON" ]; then
    # python3 first: it is what the user sees. The named ones help where python3 is the distribution's old one.
    for candidate in python3 python3.12 python3.13 python3.11; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            PYTHON=$candidate
            break
        fi
    done
fi
if [ -z "$PYTHON" ] || ! new_enough "$PYTHON"; then
    echo "setup: wanted Python 3.11 or newer, got ${PYTHON:-none}; install one, or name it: make ... PYTHON=/path/to/python3.12" >&2
    exit 2
fi

if [ -n "$VENV" ]; then
    if [ ! -x "$VENV/bin/python" ]; then
        say "creating $VENV with $("$PYTHON" --version)"
        "$PYTHON" -m venv "$VENV" || {
            echo "setup: $PYTHON has no venv module (on Debian and Ubuntu: apt install python3-venv)" >&2
            rm -rf "$VENV"
            exit 2
        }
    fi
    PYTHON=$VENV/bin/python
fi
# find_spec, not import: torch takes seconds to import.
has() { "$PYTHON" -c 'import importlib.util as u, sys; raise SystemExit(not u.find_spec(sys.argv[1]))' "$1"; }
pip() { "$PYTHON" -m pip --disable-pip-version-check "$@"; }

# torch goes first, because only here is it known whether the machine has a use for three gigabytes of CUDA libraries.
if ! has torch; then
    if [ -z "$TORCH_INDEX" ] && [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then
        # A machine that sees only a mirror cannot reach it. Then the configured index decides: right, but it may be large.
        if "$PYTHON" - "$CPU_INDEX/torch/" <<'PROBE'
import sys, urllib.request
try:
    urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=5).close()
except OSError:
    raise SystemExit(1)
PROBE
        then
            TORCH_INDEX=$CPU_INDEX
        else
            say "$CPU_INDEX is out of reach; the configured package index decides which build of torch this gets"
        fi
    fi
    say "installing $TORCH${TORCH_INDEX:+ from $TORCH_INDEX}"
    # --index-url, not --extra-index-url: of two indexes, pip may well prefer the CUDA build on the other one.
    pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
fi
# A CUDA build of torch brings the Triton that it was built with; a CPU build brings none, and the kernels need it all the same.
if [ "$(uname -s)" = Linux ] && ! has triton; then
    say "installing $TRITON"
    pip install --quiet "$TRITON"
fi

say "installing sluicegate${EXTRAS:+ with $EXTRAS}"
pip install --quiet --editable ".${EXTRAS:+[$EXTRAS]}"
"$PYTHON" -c 'import torch, triton; print(f"== ready: torch {torch.__version__}, triton {triton.__version__}, " + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"))' >&2
