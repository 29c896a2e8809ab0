"""Every oracle check in one Python process. Exit code 0: all passed; 1: one failed; 77: not run, and why is printed."""

import argparse
import importlib
import os
import sys
import time
import traceback

os.environ["HF_HUB_OFFLINE"] = "1"

SKIPPED = 77
MODULES = ["causality", "chat", "conversation", "dcp", "generate", "hostile", "llama", "optimizer", "parallel", "schedule"]  # NAME is run() of NAME_oracle.py


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", default="build/bin/trireme_probe", help="the binary of tests/oracle/probe.cc")
    parser.add_argument("--only", choices=MODULES, nargs="+", default=MODULES)
    args = parser.parse_args()
    try:
        import safetensors  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh` installs torch, transformers and safetensors into .venv")
        return SKIPPED
    if not os.path.exists(args.probe):
        print(f"skipped: {args.probe} is not built; build the target trireme_probe")
        return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")

    from checks import Checks
    from probe import Probe

    checks, probe = Checks(), Probe(args.probe)
    for name in args.only:
        start = time.monotonic()
        try:
            importlib.import_module(f"{name}_oracle").run(checks, probe)
        except Exception:
            checks.failed.append(f"{name} (ended by an exception)")
            traceback.print_exc(file=sys.stdout)
        print(f"-- {name}: {time.monotonic() - start:.1f} s", flush=True)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
