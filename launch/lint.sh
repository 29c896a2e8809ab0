#!/usr/bin/env bash
# launch/lint.sh [FILE ...]
# Format (.clang-format) and faults that clang-tidy finds (.clang-tidy), in the files named; without names, in those that differ from the last commit
# that origin/main, or the branch main, has in common with this. Needs a configured build/ (launch/build.sh). Changes nothing.
set -euo pipefail
here=$PWD
source "$(dirname "$0")/env.sh"

for tool in clang-format clang-tidy; do
  command -v $tool >/dev/null || fail "lint.sh: no $tool here; launch/setup.sh --tests installs it"
done
[ -f build/compile_commands.json ] || fail "lint.sh: no build/compile_commands.json; run launch/build.sh once"

files=()
if [ $# -gt 0 ]; then
  for file in "$@"; do
    file=$(realpath -s --relative-to="$PWD" "$(cd "$here" && realpath -s -- "$file")")
    [ -f "$file" ] || fail "lint.sh: there is no file $file"
    files+=("$file")
  done
else
  base=HEAD
  for main in origin/main main; do
    if git rev-parse -q --verify "$main" >/dev/null; then
      base=$(git merge-base HEAD "$main")
      break
    fi
  done
  mapfile -d '' files < <(
    git diff -z --name-only --diff-filter=d "$base" -- '*.h' '*.cc' '*.cu' '*.cuh'
    git ls-files -z --others --exclude-standard -- '*.h' '*.cc' '*.cu' '*.cuh'
  )
fi
if [ ${#files[@]} -eq 0 ]; then
  say "lint: nothing changed"
  exit
fi

say "lint: format of ${#files[@]} files"
clang-format --dry-run --Werror -- "${files[@]}"

# Headers are seen through the sources that include them. GCC's precompiled headers are none of clang's.
sources=()
for file in "${files[@]}"; do
  if [[ "$file" == *.cc ]]; then sources+=("$file"); fi
done
mkdir -p build/lint
mapfile -d '' known < <(
  python3 - build/compile_commands.json build/lint/compile_commands.json "${sources[@]}" <<'END'
import json, os, re, shlex, sys

commands = []
for command in json.load(open(sys.argv[1], encoding="utf-8")):
    # Where the files of a folder are compiled as one (TRIREME_UNITY), each would be compiled like the whole.
    whole = open(command["file"], encoding="utf-8").read() if "/Unity/unity_" in command["file"] else ""
    sources = re.findall(r'^#include "(.+)"', whole, re.MULTILINE) or [command["file"]]
    commands += [dict(command, file=source, command=command["command"].replace(command["file"], source)) for source in sources]
for command in commands:
    words = shlex.split(command.pop("command"))
    command["arguments"] = [word for i, word in enumerate(words) if not (word == "-include" or word == "-Winvalid-pch" or i > 0 and words[i - 1] == "-include")]
json.dump(commands, open(sys.argv[2], "w", encoding="utf-8"))
compiled = {os.path.realpath(command["file"]) for command in commands}
for source in sys.argv[3:]:
    if os.path.realpath(source) in compiled:
        sys.stdout.write(source + "\0")
    else:
        print(f"  {source}: no target of build/ compiles it", file=sys.stderr)
END
)
[ ${#known[@]} -eq 0 ] || {
  say "lint: clang-tidy of ${#known[@]} files"
  printf '%s\0' "${known[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy --quiet -p build/lint 2>build/lint/stderr ||
    fail "lint.sh: clang-tidy found something, above, or could not read a file: $(grep -m 3 -E 'error:|Error' build/lint/stderr || echo 'see build/lint/stderr')"
}
say "lint: passed"
