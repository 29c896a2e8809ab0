"""Checks that docs/config_reference.md is what docs/generate_config_reference.py makes of configs/run_config.proto, and that it says of every field what
`trireme config` says, whose words come out of the protobuf compiler.

    config_reference_test.py TRIREME
"""

import importlib.util
import re
import subprocess
import sys

from pages import ROOT, page

SAID = re.compile(r"^ *([\w.]+): (?:(\w+), (repeated|no default|default .*)|(\w+)(, repeated)?)$")


def generator():
    sys.dont_write_bytecode = True  # docs/ is text that tutorials train on.
    spec = importlib.util.spec_from_file_location("generate_config_reference", ROOT / "docs" / "generate_config_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fields_of_program(trireme):
    """How often the program tells a field of this name and type, messages told at each place where they are used."""
    text = subprocess.run([trireme, "config"], capture_output=True, text=True, check=True).stdout
    return {(match[1], match[2] or match[4]) for line in text.splitlines() if (match := SAID.match(line)) and match[1][0].islower()}


def fields_of_page():
    rows = re.findall(r"^\| `(\w+)` \| (?:list of )?(?:\[(\w+)\]\([^)]*\)|([\w&;,. >]+)) \|", page("docs/config_reference.md").text, re.MULTILINE)
    return {(name, message or plain) for name, message, plain in rows}


def main():
    made = generator().page((ROOT / "configs" / "run_config.proto").read_text(encoding="utf-8"))
    if page("docs/config_reference.md").text != made:
        sys.exit("docs/config_reference.md is not what configs/run_config.proto says; run docs/generate_config_reference.py")
    program, written = fields_of_program(sys.argv[1]), fields_of_page()
    # A map is a message of its own to the compiler.
    maps = {name for name, type_name in written if type_name.startswith("map")}
    missing = {field for field in program if field not in written and field[0] not in maps and field[0] not in {"key", "value"}}
    unknown = {field for field in written if field not in program and field[0] not in maps}
    assert len(written) > 100, f"only {len(written)} fields found on the page"
    if missing or unknown:
        sys.exit(f"`trireme config` has fields that the page lacks: {sorted(missing)}; the page has others: {sorted(unknown)}")
    print(f"docs/config_reference.md is current: {len(written)} fields as `trireme config` has them")


if __name__ == "__main__":
    main()
