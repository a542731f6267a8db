#!/usr/bin/env bash
# No false alarm: everything known to be right must pass. Ours, the implementations of before, the references in the inputs' dtypes, and
# flash-linear-attention's naive functions.
#
#   ci/specificity.sh [CASES [further arguments of `sluicegate verify`]]      CASES an operator: 3000
#
# OPERATORS: those to judge, separated by blanks (default: all). PYTHON: the interpreter (default: .venv/bin/python). Exit and reports are those of `verify`; a failure there is a false alarm here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cases=${1:-3000}
shift || true

subjects=()
add() { subjects+=(--subject "$1=$2"); }
for operator in ${OPERATORS:-chunk_metadata step_metadata conv_prefill conv_update gdn_decode gdn_prefill gated_rmsnorm moe_routing moe}; do
    case $operator in
        conv_*) add $operator "optimized.causal_conv:$operator" ;;
        gated_rmsnorm) add $operator "optimized.gated_norm:$operator" ;;
        *) add $operator "optimized.$operator:$operator" ;;
    esac
    case $operator in chunk_metadata) add $operator "optimized.$operator:chunk_metadata_kernel" ;; esac
    # The metadata of before comes in new buffers every step, which is wrong under CUDA graphs.
    case $operator in
        step_metadata) ;;
        moe*) add $operator "optimized.moe_baseline:$operator" ;;
        *) add $operator "optimized.baselines:$operator" ;;
    esac
    # The reference of the metadata walks every token; some cases have 2^31 of them.
    case $operator in *_metadata) ;; *) add $operator "tests/harness/subjects/unpromised.py:$operator" ;; esac
    case $operator in gdn_*) add $operator "tests/harness/subjects/published.py:$operator" ;; esac
done
# Arguments and costs are promises of ours; the others make none.
exec "${PYTHON:-.venv/bin/python}" -m harness.cli verify "${subjects[@]}" --properties equivalence,relations,memory \
    --cases "$cases" --out out/specificity "$@"
