#!/usr/bin/env bash
# launch/quickstart.sh
# From a fresh clone to a trained model: installs, builds, takes real English from Debian packages (without installing them), trains a tokenizer,
# prepares a corpus, pretrains configs/recipes/quickstart.textproto on two ranks, stops 20 steps before the end and resumes. Everything goes to
# runs/quickstart/. At the end the model continues a prompt and is exported for Hugging Face. What is done and whole is not done again; remove a part of runs/quickstart/ to have it remade, all of it to start afresh.
# Prints a line for each part and, on a terminal, what the part is doing; everything the parts say goes to runs/quickstart/quickstart.log.
set -euo pipefail
source "$(dirname "$0")/env.sh"

recipe=configs/recipes/quickstart.textproto
ranks=2
out=runs/quickstart
trireme=build/bin/trireme
text_packages=(python3.11-doc perl-doc anarchism)

log=$out/quickstart.log
started=$SECONDS
mkdir -p "$out"
: >"$log"
exec 3>&1 4>&2  # The terminal, while the parts write to the log.

# Shows the newest line of the log, over and over in the same place, cut to the width of the terminal.
follow() {
  local width
  while sleep 0.5; do
    width=$(tput cols 2>/dev/null || echo 80)
    printf '\r\033[K%.*s' $((width - 1)) "   $(tail -c 4096 "$log" | tr '\r' '\n' | grep -a . | tail -n 1)" >&3
  done
}

follower=
current=
said=0  # bytes of the log before what the current part says
stop_following() {
  [ -n "$follower" ] || return 0
  kill "$follower" 2>/dev/null || true
  wait "$follower" 2>/dev/null || true
  follower=
  printf '\r\033[K' >&3
}

# part NAME FUNCTION: runs it, its output going to the log, and says how long it took.
part() {
  local begin=$SECONDS
  current=$1
  echo "== $1" >>"$log"
  said=$(stat -c %s "$log")
  if [ -t 1 ]; then
    follow &
    follower=$!
  fi
  "$2" >>"$log" 2>&1
  stop_following
  current=
  printf '   %-50s %4d s\n' "$1" $((SECONDS - begin))
}

# However it ends: a part that failed is named, with the end of what it said.
ended() {
  local code=$?
  stop_following
  [ $code -ne 0 ] || return 0
  exec 1>&3 2>&4
  if [ -n "$current" ]; then
    echo "   $current: FAILED (exit code $code). The end of $log:" >&2
    tail -c "+$((said + 1))" "$log" | tail -n 15 | tr '\r' '\n' | sed 's/^/   | /' >&2
    echo "error: quickstart: mend what the last lines say and run launch/quickstart.sh again; what is done already is not done again" >&2
  fi
}
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

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
  # Package lists may be missing or old. sudo may ask for a password, which must stay to be seen.
  download 2>/dev/null || { stop_following && as_root apt-get -q update && download; } || fail "quickstart: apt-get cannot download ${text_packages[*]}; put text files of your own in $out/text and run this again"
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

generate() {
  "$trireme" generate "$out/run" --prompt "The function returns" --max-tokens 60 --ignore-eos --temperature 0.8 --top-p 0.9 --seed 2 >"$out/continuation.txt"
  cat "$out/continuation.txt"
}

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

say "quickstart: everything goes to $out; what the parts say, to $log"
# Not to the log: sudo may ask for a password.
launch/setup.sh
part "build ($trireme)" build
built=$SECONDS
part "real English ($out/text)" unpack_text
part "tokenizer, 4,096 entries ($out/tokenizer.json)" train_tokenizer
part "corpus ($out/corpus)" prepare
part "pretraining on $ranks ranks ($out/run)" train_most
part "resuming for the last 20 steps" train_rest
part "60 tokens after 'The function returns'" generate
part "export for Hugging Face ($out/hf)" export_hf
part "export for llama.cpp ($out/model.gguf)" export_gguf

loss=$(sed -n 's/.*"eval_loss": *\([0-9.]*\).*/\1/p' "$out/run/metrics.jsonl" | tail -n 1)
entropy=$(sed -n 's/^unigram_entropy: *//p' "$out/corpus/manifest.textproto")
[ -n "$loss" ] || fail "quickstart: no validation loss in $out/run/metrics.jsonl"
[ -n "$entropy" ] || fail "quickstart: no unigram_entropy in $out/corpus/manifest.textproto"

say "quickstart: done in $((SECONDS - started)) s, $((SECONDS - built)) s of them after the build. 'The function returns' goes on:"
sed 's/^/   | /' "$out/continuation.txt"
echo
awk -v loss="$loss" -v entropy="$entropy" 'BEGIN {
  printf "   validation loss %.4f nat per token; unigram entropy of the corpus %.4f; difference %.4f\n", loss, entropy, entropy - loss
  exit !(entropy - loss >= 0.8)
}' || fail "quickstart: the validation loss should end at least 0.8 nat below the unigram entropy"
cat <<END
   Next, in this shell (bash, zsh, dash):
     . launch/activate
     trireme generate $out/run --prompt "Freedom is" --max-tokens 60
     trireme inspect $out/corpus --samples 1
     mpirun --bind-to none --oversubscribe -np 2 trireme train $recipe --set run_dir=runs/mine
     trireme config train_for
END
