#!/usr/bin/env bash
# launch/sanitize.sh [tsan | asan]
# Builds everything under ThreadSanitizer (build-tsan/), or under AddressSanitizer and UndefinedBehaviorSanitizer (build-asan-full/); without an argument
# both, one after the other. Sees first that planted faults are found, then runs the unit tests and a small job of two ranks. libtorch and MPI
# are not instrumented. Takes long: everything is compiled once more for each.
set -euo pipefail
source "$(dirname "$0")/env.sh"

case "${1:-}" in
  tsan) preset=tsan faults=(race) ;;
  asan) preset=asan-full faults=(use-after-free overflow) ;;
  "")
    launch/sanitize.sh tsan
    launch/sanitize.sh asan
    exit
    ;;
  *) fail "sanitize.sh: unknown argument '$1'; usage: launch/sanitize.sh [tsan | asan]" ;;
esac
build=build-$preset
work=$PWD/$build/sanitize
mkdir -p "$work"

# A report ends the process, whatever thread it is of. Leaks are not looked for: libtorch and MPI keep what they have to the end.
# A process that ends by itself joins no thread, which is no leak. The suppressions' path stands in quotes, as it may hold a space.
export TSAN_OPTIONS="suppressions='$PWD/launch/tsan.supp' ignore_noninstrumented_modules=1 halt_on_error=1 exitcode=66 second_deadlock_stack=1 report_thread_leaks=0"
export ASAN_OPTIONS="detect_leaks=0 halt_on_error=1 detect_stack_use_after_return=1"
export UBSAN_OPTIONS="print_stacktrace=1 halt_on_error=1"
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMP_NUM_THREADS=2
# TSan of GCC 12 does not find its way where the kernel places libraries very much at random.
without_random=()
if setarch "$(uname -m)" -R true 2>/dev/null; then without_random=(setarch "$(uname -m)" -R); fi

launch/setup.sh --tests
say "sanitize: building (build-$preset/)"
launch/build.sh "$preset" planted_faults

say "sanitize: planted faults"
"${without_random[@]}" "$build/bin/planted_faults" none >"$work/none.log" 2>&1 || fail "sanitize.sh: a program without faults fails; see $work/none.log"
for fault in "${faults[@]}"; do
  if "${without_random[@]}" "$build/bin/planted_faults" "$fault" >"$work/$fault.log" 2>&1 ||
    ! grep -qE 'ThreadSanitizer: data race|AddressSanitizer: heap-use-after-free|runtime error: signed integer overflow' "$work/$fault.log"; then
    fail "sanitize.sh: the planted fault '$fault' is not found; see $work/$fault.log"
  fi
  echo "  $fault: found"
done

launch/build.sh "$preset"
say "sanitize: unit tests"
# The instrumented inner loops are not vectorized, so their longest sums round more than these tests of their arithmetic allow.
export GTEST_FILTER='-*GptKernels.LayerNorm/*:*LossHeadTest.LikeCrossEntropy/*:*RowKernels.RmsNorm*'
# The emulated GPU switches stacks, which the sanitizers do not follow.
"${without_random[@]}" ctest --preset "$preset" -L '^unit$' -E '^(cuda_emulated|layering|layering_self)_test$' --timeout 1800

say "sanitize: a job of two ranks"
trireme=$PWD/$build/bin/trireme
rm -rf "$work/job"
mkdir -p "$work/job"
cat >"$work/job/tiny.textproto" <<END
model { family: "llama" num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 4 num_key_value_heads: 2 intermediate_size: 128 }
data { source { path: "corpus" } sequence_length: 64 }
global_batch_size: 8
micro_batch_size: 2
optimizer { adamw {} }
train_for { steps: 6 }
parallel { shard: PARAMETERS }
checkpoint { every_steps: 2 keep_last: 2 }
launch { watchdog_seconds: 600 }
run_dir: "run"
END
(
  cp README.md docs/*.md "$work/job/"
  cd "$work/job"
  "${without_random[@]}" "$trireme" tokenizer train ./*.md --vocab-size 400 --threads 3 --output tokenizer.json
  "${without_random[@]}" "$trireme" prepare ./*.md --tokenizer tokenizer.json --threads 3 --output corpus
  "${without_random[@]}" mpirun --quiet -np 2 "$trireme" train tiny.textproto --ranks 2
  "${without_random[@]}" mpirun --quiet -np 2 "$trireme" generate run --set parallel.tensor=2 --prompt "The" --max-tokens 8 --ignore-eos
) >"$work/job.log" 2>&1 || { tail -n 60 "$work/job.log"; fail "sanitize.sh: the job failed; see $work/job.log"; }
tail -n 3 "$work/job.log"
say "sanitize: $preset found nothing"
