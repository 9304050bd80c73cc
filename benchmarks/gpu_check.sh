#!/usr/bin/env bash
# Check and time everything on the present GPU; see gpu_check.py. Needs no installed package.
# usage: bash benchmarks/gpu_check.sh [FOLDER for gpu-check.json; benchmarks/results unless given]
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
out="${1:-$root/benchmarks/results}"
[ $# -gt 0 ] && shift
mkdir -p "$out"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec python3 "$root/benchmarks/gpu_check.py" \
  --out "$out/gpu-check.json" "$@"
