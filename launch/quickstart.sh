#!/usr/bin/env bash
# launch/quickstart.sh
# From a fresh clone to a trained model: installs, builds, takes real English from Debian packages (without installing them), trains a tokenizer,
# prepares a corpus, pretrains configs/recipes/quickstart.textproto on two ranks, stops 20 steps before the end and resumes. Everything goes to
# runs/quickstart/. At the end the model continues a prompt and is exported for Hugging Face. What is done and whole is not done again; remove a part of runs/quickstart/ to have it remade, all of it to start afresh.
set -euo pipefail
source "$(dirname "$0")/env.sh"

recipe=configs/recipes/quickstart.textproto
ranks=2
out=runs/quickstart
trireme=build/bin/trireme
text_packages=(python3.11-doc perl-doc anarchism)

started=$SECONDS
report=()
# part NAME FUNCTION: runs it and remembers how long it took.
part() {
  local begin=$SECONDS
  say "quickstart: $1"
  "$2"
  report+=("$(printf '%-44s %4d s' "$1" $((SECONDS - begin)))")
}

build() { launch/build.sh cpu trireme; }

download() { (cd "$out/packages" && apt-get -q -o APT::Sandbox::User=root download "${text_packages[@]}"); }

html_to_text() { sed -z -e 's/.*<body[^>]*>//' -e 's/<[^>]*>//g' -e 's/&lt;/</g; s/&gt;/>/g; s/&quot;/"/g; s/&nbsp;/ /g; s/&amp;/\&/g' -e 's/\n\n\n*/\n\n/g' "$1"; }

unpack_text() {
  if [ -d "$out/text" ]; then
    echo "already there: $out/text"
    return
  fi
  rm -rf "$out/packages" "$out/text.tmp"
  mkdir -p "$out/packages" "$out/text.tmp/perl" "$out/text.tmp/anarchism"
  # Package lists may be missing or old.
  download 2>/dev/null || { as_root apt-get -q update && download; } || fail "quickstart: apt-get cannot download ${text_packages[*]}; put text files of your own in $out/text and run this again"
  local package page
  for package in "$out"/packages/*.deb; do dpkg -x "$package" "$out/packages/unpacked"; done
  cp -r "$out"/packages/unpacked/usr/share/doc/python3.11/html/_sources "$out/text.tmp/python"
  cp "$out"/packages/unpacked/usr/share/perl/*/pod/*.pod "$out/text.tmp/perl/"
  for page in "$out"/packages/unpacked/usr/share/doc/anarchism/html/*.html; do
    html_to_text "$page" >"$out/text.tmp/anarchism/$(basename "$page" .html).txt"
  done
  rm -rf "$out/packages"
  mv "$out/text.tmp" "$out/text"
  echo "$(find "$out/text" -type f | wc -l) documents, $(du -sh "$out/text" | cut -f1) in $out/text"
}

train_tokenizer() {
  if [ -f "$out/tokenizer.json" ]; then
    echo "already there: $out/tokenizer.json"
    return
  fi
  "$trireme" tokenizer train "$out/text" --vocab-size 4096 --output "$out/tokenizer.json"
}

prepare() {
  if [ -f "$out/corpus/manifest.textproto" ]; then
    echo "already there: $out/corpus"
    return
  fi
  "$trireme" prepare "$out/text" --tokenizer "$out/tokenizer.json" --output "$out/corpus" --validation-fraction 0.01
}

# A field of the resolved recipe.
total_steps=$(sed -n 's/^train_for { steps: \([0-9]*\) }.*/\1/p' "$recipe")
last_checkpoint=$out/run/checkpoints/$(printf 'step-%08d' "$total_steps")

# Two ranks on any machine; each takes its share of the cores.
mpirun=(mpirun --quiet --use-hwthread-cpus --bind-to none -np "$ranks")
[ "$(nproc)" -ge "$ranks" ] || mpirun+=(--oversubscribe)

train() {
  echo "+ ${mpirun[*]} $trireme train $recipe --ranks $ranks${*:+ $*}"
  "${mpirun[@]}" "$trireme" train "$recipe" --ranks "$ranks" "$@"
}

train_most() {
  if [ -f "$last_checkpoint/manifest.pb" ]; then
    echo "already finished: $last_checkpoint"
    return
  fi
  local code=0
  train --stop-at $((total_steps - 20)) || code=$?
  # 75: stopped and saved, as asked.
  if [ $code -ne 0 ] && [ $code -ne 75 ]; then
    echo "error: training ended with exit code $code (see docs/troubleshooting.md)" >&2
    exit $code
  fi
}

# A run that is finished says so and ends.
train_rest() { train; }

generate() { "$trireme" generate "$out/run" --prompt "The function returns" --max-tokens 60 --ignore-eos --temperature 0.8 --top-p 0.9 --seed 2; }

export_hf() {
  if [ -f "$out/hf/config.json" ]; then
    echo "already there: $out/hf"
    return
  fi
  "$trireme" export "$out/run" --output "$out/hf"
}

export_gguf() {
  if [ -f "$out/model.gguf" ]; then
    echo "already there: $out/model.gguf"
    return
  fi
  "$trireme" export "$out/run" --format gguf --dtype bf16 --output "$out/model.gguf"
}

part "set-up (launch/setup.sh)" launch/setup.sh
part "build (build/bin/trireme)" build
built=$SECONDS
mkdir -p "$out"
part "real English ($out/text)" unpack_text
part "tokenizer, 4,096 entries" train_tokenizer
part "corpus ($out/corpus)" prepare
part "pretraining on $ranks ranks" train_most
part "resuming for the last 20 steps" train_rest
part "60 tokens after 'The function returns'" generate
part "export for Hugging Face ($out/hf)" export_hf
part "export for llama.cpp ($out/model.gguf)" export_gguf

loss=$(sed -n 's/.*"eval_loss": *\([0-9.]*\).*/\1/p' "$out/run/metrics.jsonl" | tail -n 1)
entropy=$(sed -n 's/^unigram_entropy: *//p' "$out/corpus/manifest.textproto")
[ -n "$loss" ] || fail "quickstart: no validation loss in $out/run/metrics.jsonl"
[ -n "$entropy" ] || fail "quickstart: no unigram_entropy in $out/corpus/manifest.textproto"

say "quickstart: done in $((SECONDS - started)) s, $((SECONDS - built)) s of them after the build"
printf '   %s\n' "${report[@]}"
cat <<END
   checkpoints    $out/run/checkpoints (newest: $(cat "$out/run/checkpoints/LATEST"))
   metrics        $out/run/metrics.jsonl
   TensorBoard    $out/run/tensorboard
   tokenizer      $out/tokenizer.json
   Hugging Face   $out/hf
   GGUF           $out/model.gguf
   corpus         $out/corpus ($trireme inspect $out/corpus --samples 1)
END
awk -v loss="$loss" -v entropy="$entropy" 'BEGIN {
  printf "   validation loss %.4f nat per token; unigram entropy of the corpus %.4f; difference %.4f\n", loss, entropy, entropy - loss
  exit !(entropy - loss >= 0.8)
}' || fail "quickstart: the validation loss should end at least 0.8 nat below the unigram entropy"
