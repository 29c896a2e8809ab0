# shellcheck shell=bash
# launch/env.sh
# What the scripts of this folder share; sourced, never run. Leaves the shell in the root of the checkout.

unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit

# A CUDA toolkit is often installed without being on PATH.
if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  PATH=$PATH:/usr/local/cuda/bin
fi

# sort, awk and the like read and print numbers by the locale.
export LC_ALL=C.UTF-8

# Open MPI: root may run jobs, a job that ends gets 5 s (Open MPI waits twice this long whenever it takes a job down, so no more), and shared memory works in containers that forbid ptrace.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_odls_base_sigkill_timeout=5
export OMPI_MCA_btl_vader_single_copy_mechanism=none

# ccache: what one checkout compiled serves the next one too.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime

say() { echo "== $*"; }
fail() {
  echo "error: $*" >&2
  exit 1
}

# as_root COMMAND...: runs it as root, with sudo when this is another user.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "this needs root and there is no sudo; as root, run: $*"
  fi
}
