#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests slimrank on a CUDA GPU and times it there and on the CPU beside it: under ten minutes once torch is there.
#
#   benchmarks/gpu.sh          in an environment of its own, build/gpu (torch with CUDA: 3 GB to download)
#   benchmarks/gpu.sh --here   with the current python, which has torch, slimrank and its tools for tests
#
# PYTHON names another python. The table is benchmarks/results/gpu-<device>-torch<version>.csv; please send it.
set -euo pipefail

refuse() {
  echo "gpu.sh: $1" >&2
  exit 1
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

case "${1:-}" in
  --here) ;;
  "")
    command -v nvidia-smi > /dev/null ||
      refuse "no nvidia-smi here, so no CUDA GPU; run it on a machine with one (or with --here, where torch sees it)"
    if [[ ! -e build/gpu/.ready ]]; then
      export PIP_CONSTRAINT="$PWD/constraints.txt"
      "$python" -m venv build/gpu
      build/gpu/bin/python -m pip install --quiet "$(grep '^torch==' constraints.txt)"
      build/gpu/bin/python -m pip install --quiet --editable '.[dev,bench]'
      touch build/gpu/.ready
    fi
    python=build/gpu/bin/python
    ;;
  *) refuse "unknown option $1; give --here or nothing" ;;
esac

"$python" -c 'import torch' || refuse "$python has no torch; leave --here out, or install it"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  refuse "torch of $python sees no CUDA device; it needs a GPU, its driver and a torch with CUDA ($("$python" -c 'import torch; print("torch", torch.__version__, "with CUDA", torch.version.cuda)'))"

nvidia-smi || true
# Both are run, whatever the first says: the exit status tells if a test failed.
status=0
"$python" -m pytest -m gpu tests || status=$?
"$python" -m benchmarks.bench_gpu
exit "$status"
