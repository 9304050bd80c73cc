#!/usr/bin/env bash
# Check and time everything on the present GPU; see gpu_check.py. Needs no installed package.
# usage: bash benchmarks/gpu_check.sh [FOLDER for gpu-check.json] [OPTION of gpu_check.py]...
# The folder is benchmarks/results unless given.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
out="$root/benchmarks/results"
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
  out="$1"
  shift
fi
mkdir -p "$out"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec python3 "$root/benchmarks/gpu_check.py" \
  --out "$out/gpu-check.json" "$@"
