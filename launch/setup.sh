#!/usr/bin/env bash
# launch/setup.sh [--tests | --cuda]
# Installs what building Trireme needs on Debian 12: packages by apt, libtorch from its wheel in .venv. With --tests also the Python packages
# that the oracle tests compare with, with --cuda also CUDA's libraries (cuDNN and others that a toolkit need not have). What is there already is left alone; a second run takes less than a second.
set -euo pipefail
source "$(dirname "$0")/env.sh"

tests=
cuda=
case "${1:-}" in
  --tests) tests=1 ;;
  --cuda) cuda=1 ;;
  "") ;;
  *) fail "setup.sh: unknown argument '$1'; usage: launch/setup.sh [--tests | --cuda]" ;;
esac

packages=(
  ca-certificates ccache cmake g++ lld make ninja-build pkg-config python3-venv
  libopenmpi-dev openmpi-bin libprotobuf-dev protobuf-compiler
  libabsl-dev libcli11-dev libgtest-dev libpcre2-dev libxxhash-dev libzstd-dev nlohmann-json3-dev zlib1g-dev
)
[ -z "$tests" ] || packages+=(clang clang-format clang-tidy libclang-rt-14-dev libbenchmark-dev procps)

# Each names its wheels and their hashes.
torch_wheels=launch/libtorch_wheels.txt
cuda_wheels=launch/cuda_wheels.txt
test_wheels=launch/python_tests.txt

install_packages() {
  local missing=() package installed
  installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
  for package in "${packages[@]}"; do
    grep -q "^ii  *$package\$" <<<"$installed" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
  command -v apt-get >/dev/null || fail "setup.sh: no apt-get here; install these by hand, then run this again: ${missing[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  as_root "${apt[@]}" update
  as_root "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# install_wheels STAMP FUNCTION LIST...: calls FUNCTION unless it completed before with the same files LIST.
install_wheels() {
  local stamp=.venv/$1 function=$2
  shift 2
  if [ -f "$stamp" ] && cat "$@" | cmp -s - "$stamp"; then return 0; fi
  rm -f "$stamp"
  "$function"
  cat "$@" >"$stamp"
}

make_environment() {
  if .venv/bin/python -m pip --version >/dev/null 2>&1; then return 0; fi
  say "setup: making the virtual environment .venv"
  rm -rf .venv
  python3 -m venv .venv
}

# pip_install LIST: the lists are complete, so nothing is resolved; a wheel with another hash is refused.
pip_install() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes --only-binary :all: -r "$1" ||
    fail "setup.sh: pip could not install $1. No network: set pip's index (PIP_INDEX_URL) or proxy. A hash that differs, or no matching wheel: the list is for Linux on x86-64 and Python 3.10 to 3.14 (tests: from 3.11) (here: $(uname -m), $(.venv/bin/python -V)); elsewhere pass -DTRIREME_TORCH_DIR=DIR to launch/build.sh"
}

install_torch() {
  make_environment
  say "setup: installing libtorch and OpenBLAS from their wheels (about 550 MB)"
  pip_install "$torch_wheels"
}

install_cuda_wheels() {
  say "setup: installing the CUDA libraries that libtorch loads (about 1.3 GB)"
  pip_install "$cuda_wheels"
}

install_test_wheels() {
  say "setup: installing what the tests compare with (about 550 MB)"
  pip_install "$test_wheels"
  .venv/bin/python -c 'import torch' 2>/dev/null && return
  install_cuda_wheels
  .venv/bin/python -c 'import torch' || fail "setup.sh: PyTorch does not import; remove .venv and run this again"
}

install_packages
install_wheels torch.stamp install_torch "$torch_wheels"
[ -z "$cuda" ] || install_wheels cuda.stamp install_cuda_wheels "$cuda_wheels"
[ -z "$tests" ] || install_wheels tests.stamp install_test_wheels "$test_wheels" "$cuda_wheels"
