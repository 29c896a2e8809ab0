#!/usr/bin/env bash
# tests/package/package_test.sh BUILD_DIR
# Installs BUILD_DIR to a prefix, builds tests/package/app against the installed package only, and trains with what it adds.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$(cd "$1" && pwd)
work=$build/package_test
config=$here/outrigger.textproto
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
# The sources must not be reached: the project is configured from a copy, elsewhere.
cp -r "$here/app" "$work/source"
cmake -G Ninja -S "$work/source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$work/prefix"
cmake --build "$work/build"
if grep -rE --include='*.ninja' -- "(-I|-isystem )($root|$build)(/configs|/data|/trainer)?( |\$)" "$work/build"; then
  echo "error: the project includes headers of the source tree"
  exit 1
fi

cd "$work"
echo "== the project runs its own family and attention"
build/app bench "$config" --steps 2 --warmup 1 | tee bench.json
grep -q '"tokens_per_second"' bench.json

echo "== it trains that family on text, exports it, and goes on from its own config.json"
prefix/bin/trireme tokenizer train "$root/docs" --vocab-size 512 --output tokenizer.json
prefix/bin/trireme prepare "$root/docs" --tokenizer tokenizer.json --output corpus
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
prefix/bin/trireme "${train[@]}" --set run_dir="$work/more" --set model.from="$work/hf" --set kernels.attention=auto 2>error.txt || code=$?
cat error.txt
[ $code -eq 2 ]
grep -q 'model_type: "outrigger" is not supported' error.txt

echo "== its attention is a known name, and unknown ones are still refused"
code=0
build/app bench "$config" --steps 1 --set kernels.attention=nowhere 2>error.txt || code=$?
cat error.txt
[ $code -eq 2 ]
grep -q outrigger_math error.txt

echo "== the installed program knows nothing of it"
code=0
prefix/bin/trireme bench "$config" --steps 1 2>error.txt || code=$?
cat error.txt
[ $code -eq 2 ]
grep -q outrigger error.txt
grep -q llama error.txt

echo "package_test: passed"
