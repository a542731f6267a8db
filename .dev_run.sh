set -u
export TRITON_CACHE_DIR=/tmp/tc PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
T0=$SECONDS
python3 ci/entry_points.py /tmp/eps >/dev/null
python3 -m pip -q --disable-pip-version-check install --no-index --no-deps --target /tmp/site .wheels/base/*.whl 2>&1 | tail -2
export PYTHONPATH=$PWD:/tmp/eps:/tmp/site
nvidia-smi --query-gpu=name --format=csv,noheader
S() { echo "== $* at $((SECONDS-T0))"; timeout $1 python3 -m harness.cli serve --device cuda ${@:3} --out $OUT/$2 > $OUT/$2.txt 2>&1; echo "$2 rc $? at $((SECONDS-T0))"; tail -32 $OUT/$2.txt | cut -c1-300; }
timeout 120 python3 -m pytest -q -p no:cacheprovider -m cuda tests/serving -s -ra > $OUT/cuda_tests.txt 2>&1; echo "cuda tests rc $? at $((SECONDS-T0))"; grep -v "^$" $OUT/cuda_tests.txt | tail -25 | cut -c1-220
S 240 thousand --requests 1000 --seed 1 --arrival steady:8
S 60 opt --requests 200 --seed 2 --arrival all --no-judge
S 60 refs --requests 40 --seed 2 --arrival all --no-judge --kernels references --no-graphs
