#!/usr/bin/env bash
# launch/build.sh [PRESET [TARGET ...]] [-DNAME=VALUE ...]
# Configures and builds one preset of CMakePresets.json: cpu (default; build/), cuda, asan, asan-full, tsan (build-PRESET/). Needs launch/setup.sh.
set -euo pipefail
source "$(dirname "$0")/env.sh"

preset=cpu
if [[ "${1:-}" =~ ^(cpu|cuda|asan|asan-full|tsan)$ ]]; then
  preset=$1
  shift
fi
targets=()
while [ $# -gt 0 ] && [[ "$1" != -* ]]; do
  targets+=("$1")
  shift
done
if [ "$preset" = cuda ] && ! command -v nvcc >/dev/null; then fail "build.sh: no nvcc on PATH or in /usr/local/cuda/bin; install CUDA 13"; fi

folder=build
[ "$preset" = cpu ] || folder=build-$preset
# Ninja configures again by itself when a CMake file changed; options given here always do.
if [ $# -gt 0 ] || [ ! -f "$folder/build.ninja" ]; then cmake --preset "$preset" "$@"; fi
cmake --build --preset "$preset" --target "${targets[@]:-all}"
# A toolkit need not have all that libtorch loads on a GPU (cuDNN, for one).
if [ "$preset" = cuda ] && [ -x "$folder/bin/trireme" ] && ldd "$folder/bin/trireme" | grep -q 'not found'; then launch/setup.sh --cuda; fi
