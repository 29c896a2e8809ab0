#!/usr/bin/env bash
# launch/gpu_check.sh [--first] [BUILD_FOLDER]
# Proves the GPU parts on this machine: builds them (build-cuda/, or takes the build in BUILD_FOLDER), then, in two parts:
# - first, in at most 8 minutes (--first: only this): every kernel against the CPU, one GPU and one mesh against the CPU's losses, and the speed of the training
#   step: half a billion parameters, the shapes of 7 billion, QLoRA on 8 billion;
# - then the other tests that need a GPU, also under compute-sanitizer where there is one, sharding levels and every axis over NCCL on 1, 2 and 4 ranks, also
#   with communication streams delayed at random, and the other benchmarks.
# Each ends in a table; exit code 1 when anything failed, 0 and "skipped: no GPU" on a machine without.
# shellcheck disable=SC2317  # part calls the functions.
set -euo pipefail
source "$(dirname "$0")/env.sh"

if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
  [ ! -e /dev/nvidiactl ] || fail "gpu_check.sh: there is a GPU, but nvidia-smi is missing or does not list it"
  echo "skipped: no GPU (nvidia-smi lists none)"
  exit 0
fi

only_first=false
if [ "${1:-}" = --first ]; then
  only_first=true
  shift
fi
build=${1:-build-cuda}
gpus=$(nvidia-smi -L | grep -c '^GPU ')
[ -z "${CUDA_VISIBLE_DEVICES:-}" ] || gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)
unset NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE  # float32 is to be float32.
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export GTEST_COLOR=no  # mpirun gives its ranks a terminal.
results=()
failed=0
rank_seconds=180   # A job that takes longer hangs.
first_seconds=480  # All of the first part, without the build.
first_began=0      # 0: not in it

# part NAME COMMAND...: runs it, shows the end of its output if it fails, and remembers the result. Exit code 77: skipped, the last line says why.
# set -e has no effect inside COMMAND: functions chain their steps.
part() {
  local name=$1 log=$out/log begin=$SECONDS code=0
  shift
  say "gpu_check: $name"
  if [ "$first_began" -gt 0 ]; then
    local left=$((first_seconds - (SECONDS - first_began)))
    if [ "$left" -lt 20 ]; then
      results+=("$(printf '%-46s %-8s %5d s  %s' "$name" skipped 0 "the first part's time is used up")")
      return
    fi
    rank_seconds=$((left < 180 ? left : 180))
  fi
  "$@" >"$log" 2>&1 || code=$?
  local line
  line=$(tail -n 1 "$log")
  case $code in
    0) results+=("$(printf '%-46s %-8s %5d s  %s' "$name" passed $((SECONDS - begin)) "$line")") ;;
    77) results+=("$(printf '%-46s %-8s %5d s  %s' "$name" skipped $((SECONDS - begin)) "$line")") ;;
    *)
      failed=1
      results+=("$(printf '%-46s %-8s %5d s  exit code %d' "$name" FAILED $((SECONDS - begin)) $code)")
      tail -n 60 "$log"
      ;;
  esac
}

# ranks N COMMAND...: as N ranks. Ranks that share a GPU pretend to be on different machines, as NCCL refuses two on one GPU otherwise.
ranks() {
  local n=$1 prefix=(env)
  shift
  if [ "$n" -gt "$gpus" ]; then
    # shellcheck disable=SC2016
    prefix=(bash -c 'export NCCL_HOSTID=rank-$OMPI_COMM_WORLD_RANK; exec "$@"' ranks)
  fi
  timeout --kill-after=5 "$rank_seconds" mpirun --quiet --bind-to none --oversubscribe -np "$n" "${prefix[@]}" "$@"
}

build_all() {
  launch/build.sh cuda && echo "$build"
}

# limited COMMAND...: ends it when it takes too long.
limited() {
  timeout --kill-after=5 "$rank_seconds" "$@"
}

# Fails also when GoogleTest skipped: there is a GPU.
without_skips() {
  "$@" | tee "$out/tests" || return 1
  ! grep -q '^\[  SKIPPED \]' "$out/tests" || return 1
  grep -h '^\[  PASSED  \]' "$out/tests"
}

sanitized() {
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer on PATH"; return 77; }
  # libtorch's own kernels (attention, matrix products) are not ours to check.
  compute-sanitizer --tool "$1" --error-exitcode 1 "$build/bin/cuda_kernels_test" --gtest_filter='-*CudaAttention*:*LossHead*:*MatrixProducts*' && echo "$1: no errors"
}

# A small corpus made of this repository's own sources.
make_corpus() {
  mkdir -p "$out/text"
  local file
  for file in kernels/*.cc data/*.cc trainer/*.cc; do cp "$file" "$out/text/$(echo "$file" | tr / _).txt"; done
  "$build/bin/trireme" tokenizer train "$out/text" --vocab-size 600 --output "$out/tokenizer.json" &&
    "$build/bin/trireme" prepare "$out/text" --tokenizer "$out/tokenizer.json" --output "$out/corpus"
}

# train_losses NAME RANKS DEVICE OVERRIDES...: trains 5 steps; leaves the losses, one a line, in $out/NAME.losses.
train_losses() {
  local name=$1 n=$2 device=$3
  shift 3
  cat >"$out/$name.textproto" <<END
model { family: "llama" num_hidden_layers: 2 hidden_size: 128 num_attention_heads: 4 num_key_value_heads: 2 intermediate_size: 256 }
data { source { path: "$out/corpus" } sequence_length: 128 document_mask: true }
global_batch_size: 8
micro_batch_size: 2
optimizer { sgd { learning_rate: 0.05 } }
train_for { steps: 5 }
launch { device: $device watchdog_seconds: 60 }
run_dir: "$out/$name"
END
  local overrides=() override
  for override in "$@"; do overrides+=(--set "$override"); done
  ranks "$n" "$build/bin/trireme" train "$out/$name.textproto" "${overrides[@]}" || return 1
  sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' "$out/$name/metrics.jsonl" >"$out/$name.losses"
  [ "$(wc -l <"$out/$name.losses")" -eq 5 ] || { echo "$name: expected 5 losses in metrics.jsonl"; return 1; }
}

# same_losses A B BOUND: the largest relative difference of two runs' losses.
same_losses() {
  paste "$out/$1.losses" "$out/$2.losses" | awk -v bound="$3" '{
    difference = ($1 - $2) / $2; if (difference < 0) difference = -difference; if (difference > largest) largest = difference
  } END { printf "largest relative difference of a loss %.1e (bound %s)\n", largest, bound; exit !(NR == 5 && largest <= bound) }'
}

one_gpu_as_cpu() {
  make_corpus && train_losses cpu 1 CPU && train_losses gpu_1 1 CUDA && same_losses gpu_1 cpu 1e-5
}
layout() {
  local name="gpu_$1_$2"
  train_losses "$name" "$1" CUDA "parallel.shard=$2" && same_losses "$name" cpu 1e-5
}
# axes RANKS FIELDS: a mesh over NCCL, FIELDS being those of `parallel`; and once more with delayed communication.
axes() {
  local name=gpu_axes delayed=gpu_axes_delayed
  rm -rf "${out:?}/$name" "${out:?}/$delayed"
  train_losses $name "$1" CUDA "parallel { $2 }" && same_losses $name cpu 1e-5 &&
    TRIREME_TEST_DELAY_STREAMS=7 train_losses $delayed "$1" CUDA "parallel { $2 }" && same_losses $delayed $name 1e-5
}
delayed_layout() {
  TRIREME_TEST_DELAY_STREAMS=7 train_losses delayed 2 CUDA parallel.shard=PARAMETERS && same_losses delayed gpu_2_PARAMETERS 1e-5
}
bf16_layout() {
  train_losses bf16_1 1 CUDA precision.compute=BF16 && train_losses bf16_2 2 CUDA precision.compute=BF16 parallel.shard=PARAMETERS &&
    same_losses bf16_1 cpu 1e-2 && same_losses bf16_2 bf16_1 5e-3
}

# bench RECIPE STEPS
bench() {
  ranks 1 "$build/bin/trireme" bench "configs/recipes/$1.textproto" --set launch.device=CUDA --set precision.compute=BF16 --steps "$2" 2>&1
}

table() {
  say "gpu_check: $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1), $gpus visible"
  printf '   %s\n' "${results[@]}"
}

[ $# -gt 0 ] || part "build" build_all
[ -x "$build/bin/cuda_kernels_test" ] || fail "gpu_check.sh: no $build/bin/cuda_kernels_test; build with launch/build.sh cuda"
missing=$(ldd "$build/bin/trireme" | sed -n 's/ => not found//p' | xargs)
[ -z "$missing" ] || fail "gpu_check.sh: $build/bin/trireme needs $missing; launch/setup.sh --cuda installs them"
first_began=$((SECONDS > 0 ? SECONDS : 1))
part "kernels against the CPU" without_skips limited "$build/bin/cuda_kernels_test"
part "one GPU has the CPU's losses (fp32)" one_gpu_as_cpu
part "4 ranks, tensor: 2 data_shard: 2" axes 4 "tensor: 2 data_shard: 2 shard: PARAMETERS"
for recipe in bench_0_5b bench_7b_shapes bench_qlora_8b; do part "bench $recipe, bf16, 1 GPU" bench $recipe 10; done
first_began=0
rank_seconds=180
table
[ $only_first = false ] || exit $failed

for n in 1 2 4; do
  part "NCCL operations and random delays, $n ranks" without_skips ranks "$n" "$build/bin/nccl_test"
done
for n in 2 4; do
  for level in NONE OPTIMIZER GRADIENTS PARAMETERS; do part "$n ranks, shard: $level (fp32)" layout $n $level; done
done
part "2 ranks, communication delayed" delayed_layout
for mesh in "tensor: 2" "pipeline: 2" "pipeline: 2 pipeline_schedule: \"ZB-H1\"" "context: 2" "context: 2 context_method: RING"; do
  part "2 ranks, $mesh" axes 2 "$mesh"
done
for mesh in "tensor: 2 pipeline: 2" "tensor: 4" "pipeline: 2 pipeline_schedule: \"ZB-V\" context: 2" "tensor: 2 context: 2 context_method: RING"; do
  part "4 ranks, $mesh" axes 4 "$mesh"
done
part "bfloat16, 1 and 2 ranks" bf16_layout
for recipe in bench_shape_a bench_smollm2_135m; do part "bench $recipe, bf16, 1 GPU" bench $recipe 20; done
part "kernels, compute-sanitizer memcheck" sanitized memcheck
part "kernels, compute-sanitizer racecheck" sanitized racecheck
table
exit $failed
