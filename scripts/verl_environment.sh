#!/bin/sh
# The environment in which the verl host is tested: verl 0.9.1 pins transformers below 5.11, so it cannot live in .venv. No GPU, no vLLM, no
# flash-attention.
#
#     sh scripts/verl_environment.sh [.venv-verl]        PYTHON names an interpreter from 3.11 to 3.12 (verl requires < 3.13)
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv-verl}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    echo "verl 0.9 runs on Python 3.11 and 3.12; $python is $("$python" --version). Name another: PYTHON=python3.11 sh $0" >&2
    exit 1
}
test -d "$venv" || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check"
$pip torch==2.13.0 # first: this pin is a CPU build; a bare `torch` would pull gigabytes of CUDA. verl 0.9.1 names no torch of its own
# TransferQueue, uvicorn and fastapi: verl imports them at run time and leaves them to its extra `verl-core`, which also asks for torchcodec and more
$pip -c constraints-verl.txt verl==0.9.1 TransferQueue pyzmq msgspec cachetools fastapi uvicorn pytest numpy jaxtyping safetensors
$pip --no-deps -e .
touch "$venv/.installed"
