#!/usr/bin/env bash
# launch/fuzz.sh [TARGET ...]
# Fuzzes every reader of files from outside (tests/fuzz/) under ASan and UBSan, or only the named ones, as many at a time as there are cores.
# TRIREME_FUZZ_SECONDS (20): time for each; 0: nothing is built or run. TRIREME_FUZZ_BUDGET: seconds that all of them share instead. What was found interesting stays in build-asan/fuzz/corpus/ and is where the next run begins.
set -euo pipefail
source "$(dirname "$0")/env.sh"

targets=("$@")
[ $# -gt 0 ] || for file in tests/fuzz/*_fuzz.cc; do targets+=("$(basename "$file" _fuzz.cc)"); done
seconds=${TRIREME_FUZZ_SECONDS:-20}
if [[ "${TRIREME_FUZZ_BUDGET:-}" =~ ^[0-9]+$ ]]; then seconds=$((TRIREME_FUZZ_BUDGET * $(nproc) / ${#targets[@]})); fi
[[ "$seconds" =~ ^[0-9]+$ ]] || fail "fuzz.sh: TRIREME_FUZZ_SECONDS is '$seconds', not a number of seconds"
if [ "$seconds" -eq 0 ]; then exit; fi

# libFuzzer comes in a package of its own beside the compiler.
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$probe/probe.cc"
if ! clang++ -fsanitize=fuzzer,address "$probe/probe.cc" -o "$probe/probe" 2>/dev/null; then
  say "fuzz: skipped: no clang++ with libFuzzer here (on Debian: clang and libclang-rt-14-dev)"
  exit
fi

launch/build.sh asan "${targets[@]/%/_fuzz}"

fuzz() {
  local folder=build-asan/fuzz/corpus/$1 log=build-asan/fuzz/$1.log
  mkdir -p "$folder"
  if "build-asan/bin/$1_fuzz" -max_total_time="$2" -timeout=25 -print_final_stats=1 -artifact_prefix="build-asan/fuzz/$1-" "$folder" >"$log" 2>&1; then
    echo "  $1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, nothing found"
  else
    echo "  $1: FAILED: $(grep -m 1 -E 'ERROR:|runtime error:|check failed' "$log" || tail -n 1 "$log")"
    echo "    log: $log; again: build-asan/bin/$1_fuzz $(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)"
    return 1
  fi
}
export -f fuzz

say "fuzz: ${#targets[@]} readers, $seconds s each"
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {} '"$seconds" || fail "fuzz.sh: a reader failed; see above"
