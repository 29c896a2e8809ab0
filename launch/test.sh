#!/usr/bin/env bash
# launch/test.sh
# Installs what is missing, builds, and runs every test: first the parts without libtorch under ASan and UBSan, then fuzzing (launch/fuzz.sh,
# TRIREME_FUZZ_SECONDS a reader, 20 unless set), then everything. Ends in ctest's summary.
set -euo pipefail
source "$(dirname "$0")/env.sh"

# Tests start more ranks than there are cores, several jobs at a time.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export HF_HUB_OFFLINE=1

launch/setup.sh --tests
say "test: building the sanitized parts (build-asan/)"
launch/build.sh asan
say "test: building (build/)"
launch/build.sh cpu

sanitized=passed fuzzed=passed
say "test: under ASan and UBSan"
ctest --preset asan -j "$(nproc)" || sanitized=failed
launch/fuzz.sh || fuzzed=failed
say "test: everything"
ctest --preset cpu -j "$(nproc)"
[ $sanitized = passed ] || fail "test.sh: tests failed under ASan and UBSan; see build-asan/Testing/Temporary/LastTest.log"
[ $fuzzed = passed ] || fail "test.sh: fuzzing found something; see above and build-asan/fuzz/*.log"
