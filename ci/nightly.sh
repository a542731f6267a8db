#!/usr/bin/env bash
# The nightly accuracy job: questions through the full model, cold and warm, and a paired verdict on a stored baseline.
#
#   ci/nightly.sh (--model NAME | --base-url URL) [--baseline NAME] [--task gsm8k] [--new-baseline] [--out DIR]
#                 [-- further arguments of `sluicegate accuracy`]
#
# A model's NAME is a folder in SLUICEGATE_MODELS, or any folder; `miniature` is the repository's own checkpoint. A baseline's NAME is
# NAME.jsonl in SLUICEGATE_BASELINES; by default MODEL-TASK. --new-baseline stores this run's first pass under that name, and judges
# nothing. PYTHON names the interpreter (default: that of .venv, or python3).
# Exit: 0 as before or improved; 1 a regression; 3 too little power to say, which is red too; 2 wrong usage, or nobody to ask.
set -euo pipefail
started=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,11s/^# \{0,1\}//p' ci/nightly.sh; }
complain() { echo "nightly.sh: $1" >&2; exit 2; }
value() { [ $# -ge 2 ] || complain "$1 needs a value"; }

model='' url='' baseline='' task=gsm8k out=out/nightly new=0
while [ $# -gt 0 ]; do
    case $1 in
        --model) value "$@"; model=$2; shift 2 ;;
        --base-url) value "$@"; url=$2; shift 2 ;;
        --baseline) value "$@"; baseline=$2; shift 2 ;;
        --task) value "$@"; task=$2; shift 2 ;;
        --out) value "$@"; out=$2; shift 2 ;;
        --new-baseline) new=1; shift ;;
        --) shift; break ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; complain "unknown argument $1" ;;
    esac
done
if [ -n "$model" ] && [ -n "$url" ]; then complain "got --model and --base-url, expected one of them"; fi
[ -n "$model$url" ] || complain "expected --model NAME or --base-url URL"

if [ -n "$url" ]; then
    asked=(--base-url "$url")
    label=server
else
    label=$(basename "$model")
    if [ "$model" = miniature ]; then
        folder=accuracy/miniature/checkpoint
    elif [ -d "${SLUICEGATE_MODELS:-}/$model" ]; then
        folder=$SLUICEGATE_MODELS/$model
    else
        folder=$(cd "$started" && [ -d "$model" ] && cd "$model" && pwd) || complain "--model: no folder $model, nor one of that name in SLUICEGATE_MODELS (${SLUICEGATE_MODELS:-not set})"
    fi
    asked=(--model "$folder")
fi
name=${baseline:-$label-$(basename "$task" .jsonl)}
file=${SLUICEGATE_BASELINES:-out/baselines}/$name.jsonl

# What an earlier night left must not be gone on with.
rm -rf "$out"
arguments=(accuracy "${asked[@]}" --task "$task" --passes cold,warm --out "$out")
if [ "$new" = 1 ]; then
    arguments+=(--save-baseline "$file")
elif [ -f "$file" ]; then
    arguments+=(--baseline "$file")
else
    complain "no baseline $file; make one with --new-baseline, from a run that is known to be right"
fi
python=${PYTHON:-}
[ -n "$python" ] || python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
code=0
"$python" -m harness.cli "${arguments[@]}" "$@" || code=$?
case $code in
    0) echo "nightly: $name: passed" ;;
    1) echo "nightly: $name: RED, a regression: see $out/report.html" ;;
    3) echo "nightly: $name: RED, too little power to say: see $out/report.html for what it could have seen" ;;
    *) echo "nightly: $name: RED, exit status $code" ;;
esac
exit "$code"
