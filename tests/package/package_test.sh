#!/usr/bin/env bash
# tests/package/package_test.sh BUILD_DIR
# Installs BUILD_DIR to a prefix, moves the prefix, hides the checkout, and then: runs the program, builds tests/package/app against the package, trains with what it adds.
# Hiding needs the right to mount (root, or user namespaces); without, what would be read of the checkout is only looked for in paths.
set -euo pipefail
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

if [[ "${1:-}" != --* ]]; then
  here=$(cd "$(dirname "$0")" && pwd)
  root=$(cd "$here/../.." && pwd)
  build=$(cd "$1" && pwd)
  work=$build/package_test
  rm -rf "$work"
  mkdir -p "$work"
  cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
  mkdir "$work/moved away"
  mv "$work/prefix" "$work/moved away/prefix"
  # The project is configured from a copy, elsewhere.
  cp -r "$here/app" "$work/source"
  cp -r "$here/outrigger.textproto" "$here/headers.py" "$here/package_test.sh" "$root/docs" "$work"
  namespace=()
  if [ "$(id -u)" -eq 0 ] && unshare -m true 2>/dev/null; then
    namespace=(unshare -m)
  elif unshare -rm true 2>/dev/null; then
    namespace=(unshare -rm)
  fi
  if [ ${#namespace[@]} -eq 0 ]; then
    echo "== the checkout cannot be hidden here: unshare -m is refused"
    exec bash "$work/package_test.sh" --visible "$root" "$work"
  fi
  # $work lies inside the checkout and is reached under another path.
  away=$(mktemp -d)
  trap 'rmdir "$away"' EXIT
  "${namespace[@]}" bash -euc 'mount --bind "$2" "$3"; mount -t tmpfs none "$1"; cd /; exec bash "$3/package_test.sh" --hidden "$1" "$3"' hide "$root" "$work" "$away"
  exit
fi

root=$2
work=$3
prefix=$work/moved\ away/prefix
trireme=$prefix/bin/trireme
config=$work/outrigger.textproto
cd "$work"
[ "$1" = --visible ] || [ ! -e "$root/CMakeLists.txt" ]

# from_outside FILE: the libraries that FILE loads and that are neither the system's nor in the prefix.
from_outside() { ldd "$1" | sed -n 's/^.* => //p' | grep -vE "^(/usr)?/lib" | grep -vF "$prefix/" || true; }

echo "== the installed program, moved, is on its own"
"$trireme" --version
[ -z "$(from_outside "$trireme")" ] || { from_outside "$trireme"; exit 1; }
"$trireme" completion bash | cmp - "$prefix/share/bash-completion/completions/trireme"

echo "== the headers are those of the contract"
python3 headers.py "$prefix/include/trireme"

cmake -G Ninja -S source -B build -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix"
cmake --build build
if grep -F -- "$root" build/build.ninja | grep -vF "$work" || grep -rF -- "$root" "$prefix/lib/cmake" | grep -v 'set(TRIREME_TORCH_DIR'; then
  echo "error: the project, or the package, uses the checkout"
  exit 1
fi
[ -z "$(from_outside build/app)" ] || { from_outside build/app; exit 1; }

echo "== the project runs its own family and attention"
build/app bench "$config" --steps 2 --warmup 1 | tee bench.json
grep -q '"tokens_per_second"' bench.json

echo "== it trains that family on text, exports it, and goes on from its own config.json"
"$trireme" tokenizer train docs --vocab-size 512 --output tokenizer.json
"$trireme" prepare docs --tokenizer tokenizer.json --output corpus
train=(train "$config" --set "data { source { path: '$work/corpus' } }" --set 'checkpoint { every_steps: 4 }')
build/app "${train[@]}" --set run_dir="$work/run" --set kernels.attention=auto
build/app export run --output hf
grep -q '"model_type": "outrigger"' hf/config.json
grep -q '"OutriggerForCausalLM"' hf/config.json
build/app inspect hf | tee inspected.txt
if grep "not possible" inspected.txt; then
  echo "error: inspect says that the model cannot be imported"
  exit 1
fi
build/app "${train[@]}" --set run_dir="$work/more" --set model.from="$work/hf"
code=0
"$trireme" "${train[@]}" --set run_dir="$work/more" --set model.from="$work/hf" --set kernels.attention=auto 2>error.txt || code=$?
cat error.txt
[ $code -eq 2 ]
grep -q 'model_type: "outrigger" is not supported' error.txt

echo "== its part is shared by ranks like any other, recomputed and not"
losses() { sed -nE 's/.*"type":"train","step":([0-9]+),"loss":([^,]*),.*"grad_norm":([^,]*),.*/\1 \2 \3/p' "$1/metrics.jsonl"; }
mpirun --quiet --oversubscribe --bind-to none -np 4 build/app "${train[@]}" --set run_dir="$work/shared" --set kernels.attention=auto \
  --set 'global_batch_size: 2 micro_batch_size: 1 parallel { tensor: 2 pipeline: 2 } recompute { policy: SELECTIVE keep: "gate_up" }'
losses run >one.txt
[ "$(wc -l <one.txt)" -eq 4 ]
losses shared | paste one.txt - | awk '{ for (i = 2; i <= 3; ++i) if (($i / $(i + 3) - 1) ^ 2 > 1e-10) { print "differs: " $0; exit 1 } }'

echo "== its attention is a known name, and unknown ones are still refused"
code=0
build/app bench "$config" --steps 1 --set kernels.attention=nowhere 2>error.txt || code=$?
cat error.txt
[ $code -eq 2 ]
grep -q outrigger_math error.txt

echo "== the installed program knows nothing of it"
code=0
"$trireme" bench "$config" --steps 1 2>error.txt || code=$?
cat error.txt
[ $code -eq 2 ]
grep -q outrigger error.txt
grep -q llama error.txt

rm -rf "$work/moved away"  # 550 MB
echo "package_test: passed"
