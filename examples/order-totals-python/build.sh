#!/bin/sh
# Builds the component `order-totals-python.wasm`. It wants Python 3.10 or newer with pip; everything else goes into `build`.
set -eu
cd "$(dirname "$0")"

# The very files that requirements.txt names. What is there already is not fetched again.
if ! cmp -s requirements.txt build/requirements.txt; then
    rm -rf build/tools
    python3 -m pip install --quiet --disable-pip-version-check --require-hashes --target build/tools -r requirements.txt
    cp requirements.txt build/requirements.txt
fi

# `-p src` and no other folder: what the machine has installed does not get in.
PYTHONPATH=build/tools build/tools/bin/componentize-py --quiet --wit-path wit --world handler-plugin \
    componentize -p src plugin -o build/plugin.wasm

python3 - <<'END'
# The manifest is a custom section at the component's end: 0, its size, its name, its text.
from pathlib import Path


def sized(data):
    size, prefix = len(data), b""
    while size > 127:
        prefix, size = prefix + bytes([size & 127 | 128]), size >> 7
    return prefix + bytes([size]) + data


manifest = Path("manifest.json").read_bytes()
section = b"\0" + sized(sized(b"laneway-manifest") + manifest)
Path("order-totals-python.wasm").write_bytes(Path("build/plugin.wasm").read_bytes() + section)
END
echo "order-totals-python.wasm is built"
