#!/usr/bin/env bash
# Everything that needs a GPU, offline, on a machine with torch, Triton, nvcc and pytest:
#   bash benchmarks/gpu.sh build|test|frameworks|sanitize|bench OUTDIR
# build       compiles the kernels and installs skelops in place
# test        the ops' tests on CUDA tensors, graphs, streams
# frameworks  whole training steps: captured, compiled, without waiting
# sanitize    memcheck and racecheck of the CUDA library, where compute-sanitizer is installed
# bench       the benchmarks in at most 9 minutes, and skelops tune in what they leave of it
# SECONDS_OF_BENCH=440 is what the benchmarks get; PYTHON=python3 names the interpreter.
set -euo pipefail

usage() {
    sed -n '2,9p' "$0" >&2
    exit 2
}

[[ $# -eq 2 ]] || usage
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
limit=540

build() {
    SKELOPS_BUILD=${SKELOPS_BUILD:-cuda} "$python" -m pip install -q --no-build-isolation --no-deps -e .
    "$python" -m skelops info | tee "$out/info.txt"
}

tests() {
    local files=() op
    for op in skelops/ops/*/; do
        files+=(tests/test_"$(basename "$op")"*.py)
    done
    files+=(tests/test_nn_*.py tests/test_gpu.py)
    shopt -s nullglob
    files+=(tests/test_cuda_*.py)
    "$python" -m pytest -q --device cuda "${files[@]}" -k "not sanitizer" 2>&1 | tee "$out/test.txt"
}

frameworks() {
    "$python" -m pytest -q tests/test_gpu_frameworks.py 2>&1 | tee "$out/frameworks.txt"
}

sanitize() {
    "$python" -m pytest -q --device cuda -rs tests/test_cuda_build.py -k sanitizer 2>&1 | tee "$out/sanitize.txt"
}

bench() {
    local gpu left failed=0
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | grep -oE '[A-Z]+[0-9]+' | head -1 | tr '[:upper:]' '[:lower:]')
    # The file is complete after every case: what was measured is kept if the time is over.
    timeout $((limit - 20)) "$python" -m benchmarks --device cuda --budget "${SECONDS_OF_BENCH:-440}" \
        --json "$out/${gpu:-gpu}.json" 2>"$out/bench.log" | tee "$out/bench.txt" || failed=$?
    [[ $failed -eq 0 ]] || tail -20 "$out/bench.log" >&2
    left=$((limit - SECONDS - 20))
    if ((left > 40)); then
        SKELOPS_TILES="$out/tiles.json" timeout "$left" "$python" -m skelops tune \
            --minutes "$(awk "BEGIN { print ($left - 15) / 60 }")" | tee "$out/tune.txt" || failed=$?
    fi
    return "$failed"
}

case $1 in
    build) build ;;
    test) tests ;;
    frameworks) frameworks ;;
    sanitize) sanitize ;;
    bench) bench ;;
    *) usage ;;
esac
