#!/usr/bin/env bash
# An environment of its own for DeepSpeed, with this package in it. 1.5 GB on disk, a few minutes.
# Usage: scripts/setup_deepspeed.sh [FOLDER] (default: .venv-deepspeed)
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER=${1:-.venv-deepspeed}
PYTHON=${PYTHON:-python3}
DEEPSPEED=0.19.8

if [ -e "$FOLDER/ready" ]; then echo "$FOLDER is ready"; exit 0; fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: PYTHON=python3.11"; exit 1; }
if [ -e "$FOLDER" ] && [ ! -e "$FOLDER/pyvenv.cfg" ]; then echo "$FOLDER is no environment: name another folder"; exit 1; fi
unset PYTHONPATH
rm -rf "$FOLDER"
"$PYTHON" -m venv "$FOLDER"
PIP="$FOLDER/bin/python -m pip --quiet --disable-pip-version-check"
$PIP install -c constraints.txt torch
$PIP install -c constraints.txt -e '.[test]'
DS_BUILD_OPS=0 $PIP install -c constraints.txt "deepspeed==$DEEPSPEED"
# DeepSpeed compiles its CPU messages when processes first meet; two that do it at once fail.
FOLDER=$(cd "$FOLDER" && pwd)
TORCH_EXTENSIONS_DIR="$FOLDER/extensions" PATH="$FOLDER/bin:$PATH" "$FOLDER/bin/python" - > /dev/null <<'PYTHON'
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

ShareMemCommBuilder().load()
PYTHON
echo "$DEEPSPEED" > "$FOLDER/ready"
echo "$FOLDER is ready: DeepSpeed $DEEPSPEED"
