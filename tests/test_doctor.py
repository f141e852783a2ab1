"""The doctor is quick, imports nothing heavy, and every fault that can be made here is found with its mend."""

from __future__ import annotations

import importlib.metadata
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentgym import cli, doctor
from agentgym.registration import ENVIRONMENTS


def findings(look):
    return {f.name: f for f in look()}


def program(folder, name, text):
    """An executable script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_everything_that_is_installed_here_is_ok(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {f["name"]: f for f in report["findings"]}
    assert report["ok"] is True
    assert {"python", "core", "train", "gpu", "threads", "textworld", "java", "docker", "vllm", "disk"} <= set(found)
    assert {e.extra for e in ENVIRONMENTS if e.extra} <= set(found)
    for name in ("python", "core", "train", "textworld", "cache", "disk"):
        assert found[name]["status"] == "ok", found[name]
    assert f"torch {importlib.metadata.version('torch')}" in found["train"]["detail"]
    for f in report["findings"]:
        assert bool(f["fix"]) == (f["status"] != "ok"), f
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in found)


def test_it_is_quick_and_imports_nothing_heavy():
    code = "import sys; from agentgym.cli import main; main(['doctor']); print('MODULES', *sys.modules)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    modules = set(done.stdout.partition("MODULES ")[2].split())
    assert not modules & {"torch", "transformers", "textworld", "textworld_express", "jericho", "matplotlib", "pyarrow"}
    user = os.times().children_user
    assert seconds < 10, f"{seconds:.1f} s, {user:.1f} s of children"  # 1 s on an idle machine, 2 s a program at most


def test_a_package_is_missing_or_old(monkeypatch):
    versions = importlib.metadata.version
    missing = {"torch", "textworld", "gymnasium"}

    def version(name):
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return {"numpy": "1.26.4", "safetensors": "0.10.0+local"}.get(name) or versions(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    core = findings(doctor._core)["core"]
    assert (core.status, core.fix) == ("broken", "pip install agentgym-lab")
    assert core.detail == "gymnasium is missing, numpy 1.26.4 is older than 2.0"
    train = findings(doctor._training)["train"]
    assert (train.status, train.detail) == ("missing", "torch is missing")
    assert train.fix == "pip install 'agentgym-lab[train]'"
    games = findings(doctor._environments)["textworld"]
    assert games.fix == "pip install 'agentgym-lab[textworld]'"
    assert games.detail == "textworld is missing; of 3 environments"


def test_a_broken_core_is_exit_code_one(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_LOOKS", (doctor._core,))
    monkeypatch.setattr(doctor, "requirements", lambda extra: {"numpy": "99.0"})
    assert cli.main(["doctor"]) == 1
    assert "-> pip install agentgym-lab" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("script", "status", "detail", "fix"),
    [
        (None, "missing", "java: No such file or directory", "apt-get install default-jre-headless"),
        ("exit 1", "missing", "java: ; agentgym/", "apt-get install default-jre-headless"),
        ("echo 'cannot allocate' >&2; exit 1", "missing", "java: cannot allocate", "apt-get install"),
        ("echo hello", "missing", "java: hello", "apt-get install"),
        ("echo 'openjdk version \"1.8.0_292\"' >&2", "warning", "older than 11", "apt-get install"),
        ("echo 'openjdk version \"21\" 2023-09-19' >&2", "ok", 'openjdk version "21"', ""),
        ("exec sleep 60", "missing", "no answer in", "apt-get install"),
    ],
)
def test_java(tmp_path, monkeypatch, script, status, detail, fix):
    if script:
        program(tmp_path, "java", script)
    monkeypatch.setenv("PATH", f"{tmp_path}" if not script or "sleep" not in script else f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(doctor, "_ANSWER_S", 0.5 if script and "sleep" in script else 5.0)
    java = findings(doctor._java)["java"]
    assert (java.status, bool(java.fix)) == (status, bool(fix))
    assert detail in java.detail
    assert fix in java.fix


def test_docker_and_browser(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert findings(doctor._docker)["docker"].fix == "apt-get install docker.io"
    assert findings(doctor._browser)["chromium"].fix.startswith("apt-get install chromium-headless-shell")
    program(tmp_path, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    docker = findings(doctor._docker)["docker"]
    assert (docker.status, docker.fix) == ("missing", "sudo systemctl start docker")
    assert "Cannot connect" in docker.detail
    program(tmp_path, "docker", "echo 27.1")
    assert findings(doctor._docker)["docker"].detail == "daemon 27.1"
    program(tmp_path, "chromium", "echo Chromium 150; exit 0")
    assert findings(doctor._browser)["chromium"].status == "ok"
    program(tmp_path, "chromium", "echo 'cannot open shared object' >&2; exit 127")
    assert findings(doctor._browser)["chromium"].status == "warning"


def test_the_gpu_and_the_build_of_torch_must_fit(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('it must not be imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("PATH", str(tmp_path))
    builds = {"cpu": "cuda: Optional[str] = None\n", "cuda": "cuda: Optional[str] = '12.8'\n"}
    expected = {
        ("cpu", False): ("ok", "none; torch is the CPU build", ""),
        ("cuda", False): ("warning", "torch is built for CUDA 12.8, but nvidia-smi: No such file", "make setup"),
        ("cpu", True): ("warning", "H100, but torch is the CPU build", "make setup DEVICE=cuda"),
        ("cuda", True): ("ok", "H100, torch for CUDA 12.8", ""),
    }
    for (build, gpu), (status, detail, fix) in sorted(expected.items(), key=lambda item: item[0][1]):
        (folder / "version.py").write_text(f"__version__ = '2'\n{builds[build]}")
        if gpu:
            program(tmp_path, "nvidia-smi", "echo H100")
        found = findings(doctor._training)["gpu"]
        assert (found.status, found.fix) == (status, fix)
        assert detail in found.detail


def test_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert findings(doctor._threads)["threads"].status == "ok"
    for name, value, words in (
        ("OMP_NUM_THREADS", "4096", "more than there are cores"),
        ("OMP_NUM_THREADS", "many", "not a number"),
        ("OMP_WAIT_POLICY", "ACTIVE", "starve"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            found = findings(doctor._threads)["threads"]
        assert found.status == "warning"
        assert words in found.detail
        assert found.fix.startswith(f"export {name}=")


def test_cache_and_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path / "new"))
    assert findings(doctor._disk)["cache"].status == "ok"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path / "file" / "cache"))
    cache = findings(doctor._disk)["cache"]
    assert (cache.status, "cannot write to" in cache.detail) == ("warning", True)
    assert cache.fix.startswith("export AGENTGYM_CACHE=")
    monkeypatch.setattr(doctor, "_LEAST_DISK", 1 << 60)
    assert findings(doctor._disk)["disk"].status == "warning"


def test_textworlds_engine_is_started(monkeypatch, tmp_path):
    assert doctor._textworld() == (True, "its compiler starts")
    for package in ("jericho", "textworld"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "cannot be loaded" in doctor._textworld()[1]
    real = next(Path(p) / "jericho" / "libfrotz.so" for p in sys.path if (Path(p) / "jericho/libfrotz.so").is_file())
    (tmp_path / "jericho" / "libfrotz.so").symlink_to(real)
    assert doctor._textworld() == (False, "its compiler inform6 is missing")
    place = tmp_path / "textworld/thirdparty/inform7-6M62/share/inform7/Compilers"
    place.mkdir(parents=True)
    (place / "inform6").write_bytes(b"\x7fELF broken")
    (place / "inform6").chmod(0o755)
    assert "inform6 does not start: Exec format error" in doctor._textworld()[1]
    finding = findings(doctor._environments)["textworld"]
    assert finding.status == "warning"
    assert (
        finding.fix == f"pip install --force-reinstall --no-deps textworld=={importlib.metadata.version('textworld')}"
    )
