#!/usr/bin/env bash
# launch/setup.sh [--tests]
# Installs what building Trireme needs on Debian 12: packages by apt, libtorch from its wheel in .venv. With --tests also the Python packages
# that the oracle tests compare with. What is there already is left alone; a second run takes less than a second.
set -euo pipefail
source "$(dirname "$0")/env.sh"

tests=
case "${1:-}" in
  --tests) tests=1 ;;
  "") ;;
  *) fail "setup.sh: unknown argument '$1'; usage: launch/setup.sh [--tests]" ;;
esac

packages=(
  ca-certificates ccache cmake g++ make ninja-build pkg-config python3-venv
  libopenmpi-dev openmpi-bin libprotobuf-dev protobuf-compiler
  libabsl-dev libcli11-dev libgtest-dev libpcre2-dev libxxhash-dev libzstd-dev nlohmann-json3-dev zlib1g-dev
)
[ -z "$tests" ] || packages+=(clang-format libbenchmark-dev procps)

# libtorch is the SDK inside PyTorch's wheel; its libraries need the CUDA runtime and CUPTI even where no GPU is.
torch_wheels=(torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 scipy-openblas32==0.3.34.481.3)

# `import torch` needs these besides; then the software the tests compare with.
import_wheels=(nvidia-cufile==1.15.1.6 nvidia-cusparselt-cu13==0.8.0 nvidia-nvshmem-cu13==3.4.5 accelerate==1.15.0)
oracle_packages=(
  filelock fsspec jinja2 networkx numpy psutil "sympy>=1.13.3" "typing_extensions>=4.10.0"
  transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 protobuf tensorboard
)
# What a CUDA toolkit would bring, for machines without one.
cuda_packages=(
  "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.0.2"
  nvidia-cudnn-cu13==9.19.0.56 nvidia-nccl-cu13==2.28.9
)

install_packages() {
  local missing=() package installed
  installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
  for package in "${packages[@]}"; do
    grep -q "^ii  *$package\$" <<<"$installed" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
  command -v apt-get >/dev/null || fail "setup.sh: no apt-get here; install these by hand, then run this again: ${missing[*]}"
  as_root apt-get -q -o DPkg::Lock::Timeout=300 update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
}

# install_wheels STAMP FUNCTION LIST...: calls FUNCTION unless it completed before with the same LIST.
install_wheels() {
  local stamp=.venv/$1 function=$2
  shift 2
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$*" ]; then return 0; fi
  "$function"
  echo "$*" >"$stamp"
}

make_environment() {
  if .venv/bin/python -m pip --version >/dev/null 2>&1; then return 0; fi
  say "setup: making the virtual environment .venv"
  rm -rf .venv
  python3 -m venv .venv
}

pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input "$@"; }

install_torch() {
  make_environment
  say "setup: installing libtorch and OpenBLAS from their wheels (about 550 MB)"
  pip_install --no-deps "${torch_wheels[@]}"
}

install_oracles() {
  make_environment
  say "setup: installing what the tests compare with"
  pip_install "${oracle_packages[@]}"
  pip_install --no-deps "${import_wheels[@]}"
  .venv/bin/python -c 'import torch' 2>/dev/null && return
  say "setup: no CUDA 13 toolkit here; installing the libraries that 'import torch' loads (about 1.5 GB)"
  pip_install "${cuda_packages[@]}"
  .venv/bin/python -c 'import torch' || fail "setup.sh: PyTorch does not import; remove .venv and run this again"
}

install_packages
install_wheels torch.stamp install_torch "${torch_wheels[@]}"
[ -z "$tests" ] || install_wheels tests.stamp install_oracles "${import_wheels[@]}" "${oracle_packages[@]}" "${cuda_packages[@]}"
