#!/bin/sh
# Runs gpu.py beside this file on a machine with Python, torch, triton, transformers, tokenizers and safetensors; the
# rest lies here as wheels, so that no network is needed. PYTHON names another interpreter.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install -q --no-index --no-deps --target "$site" "$here"/*.whl
PYTHONPATH="$site" "$python" "$here/gpu.py" "$@"
