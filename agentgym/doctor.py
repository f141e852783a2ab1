"""``agentgym doctor``: what is installed, what is missing, and the command that mends it; imports nothing heavy."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentgym.errors import MissingDependency
from agentgym.registration import ENVIRONMENTS

_DISTRIBUTION = "agentgym-lab"
_CORE = ("gymnasium", "numpy", "pyyaml", "rich")
_ANSWER_S = 2.0
_LEAST_DISK = 2 << 30
_JAVA = 11


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        status: ``ok``; ``missing``, of something optional; ``warning``; ``broken``: nothing works without it.
        detail: What was found.
        fix: The command that mends it, empty if there is nothing to mend.
    """

    name: str
    status: Literal["ok", "missing", "warning", "broken"]
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything; takes as long as the slowest program that is asked for its version."""
    with ThreadPoolExecutor() as pool:
        return [finding for found in pool.map(lambda look: list(look()), _LOOKS) for finding in found]


def requirements(extra: str | None) -> dict[str, str]:
    """Distribution name to the least version, of the core (None) or of an extra, as this package declares them."""
    try:
        declared = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return dict.fromkeys(_CORE, "") if extra is None else {}
    found = {}
    for line in declared:
        requirement, _, marker = line.partition(";")
        match = re.match(r"\s*([\w.-]+)(?:\[[^]]*\])?\s*(?:>=\s*([\w.]+))?", requirement)
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        if match and (wanted[1] if wanted else None) == extra:
            found[match[1]] = match[2] or ""
    return found


def engine_versions(env_id: str) -> dict[str, str]:
    """The installed versions of the packages behind an environment."""
    extra = next((e.extra for e in ENVIRONMENTS if e.id == env_id), None)
    found = {name: _version(name) for name in requirements(extra)} if extra else {}
    return {name: version for name, version in found.items() if version}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _older(version: str, least: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3]]

    return bool(least) and numbers(version) < numbers(least)


def _run(command: list[str]) -> tuple[bool, str]:
    """Whether a program answered, and its answer or what went wrong."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer in {_ANSWER_S:g} s"
    except OSError as error:
        return False, error.strerror or str(error)
    text = (done.stdout.strip() or done.stderr.strip()).split("\n")
    return done.returncode == 0, text[0] if done.returncode == 0 else text[-1]


def _packages(names: dict[str, str]) -> tuple[list[str], list[str]]:
    """What is installed, and what is missing or too old."""
    good, bad = [], []
    for name, least in names.items():
        version = _version(name)
        if version is None:
            bad.append(f"{name} is missing")
        elif _older(version, least):
            bad.append(f"{name} {version} is older than {least}")
        else:
            good.append(f"{name} {version}")
    return good, bad


def _core() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{found} ({sys.executable})")
    good, bad = _packages(requirements(None))
    if bad:
        yield Finding("core", "broken", ", ".join(bad), f"pip install {_DISTRIBUTION}")
    else:
        yield Finding("core", "ok", ", ".join(good))


def _training() -> Iterator[Finding]:
    good, bad = _packages(requirements("train"))
    if bad:
        yield Finding("train", "missing", ", ".join(bad), f"pip install '{_DISTRIBUTION}[train]'")
    else:
        yield Finding("train", "ok", ", ".join(good))
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return
    file = Path(spec.submodule_search_locations[0]) / "version.py"  # importing torch takes seconds
    build = re.search(r"^cuda[^=]*=\s*'([^']+)'", file.read_text(), re.MULTILINE) if file.is_file() else None
    has_gpu, gpu = _run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    if build and has_gpu:
        yield Finding("gpu", "ok", f"{gpu}, torch for CUDA {build[1]}")
    elif build:
        yield Finding("gpu", "warning", f"torch is built for CUDA {build[1]}, but nvidia-smi: {gpu}", "make setup")
    elif has_gpu:
        yield Finding("gpu", "warning", f"{gpu}, but torch is the CPU build", "make setup DEVICE=cuda")
    else:
        yield Finding("gpu", "ok", "none; torch is the CPU build")


def _threads() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    count, policy = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY", "")
    said = f"{cores} cores, OMP_NUM_THREADS {count or 'not set'}, OMP_WAIT_POLICY {policy}"
    if count and not count.isdigit():
        yield Finding("threads", "warning", f"{said}: not a number", f"export OMP_NUM_THREADS={cores}")
    elif count and int(count) > cores:
        yield Finding("threads", "warning", f"{said}: more than there are cores", f"export OMP_NUM_THREADS={cores}")
    elif policy.upper() == "ACTIVE":
        yield Finding("threads", "warning", f"{said}: waiting threads starve others", "export OMP_WAIT_POLICY=PASSIVE")
    else:
        yield Finding("threads", "ok", said)


def _environments() -> Iterator[Finding]:
    extras: dict[str, list[str]] = {}
    for entry in ENVIRONMENTS:
        if entry.extra:
            extras.setdefault(entry.extra, []).append(entry.id)
    for extra, ids in extras.items():
        good, bad = _packages(requirements(extra))
        many = f"{len(ids)} environment{'s' * (len(ids) > 1)}"
        if bad or not good:
            detail = f"{', '.join(bad) or f'{_DISTRIBUTION} is not installed'}; of {many}"
            yield Finding(extra, "missing", detail, f"pip install '{_DISTRIBUTION}[{extra}]'")
            continue
        starts, answer = _ENGINES[extra]() if extra in _ENGINES else (True, "")
        detail = f"{', '.join(good)}; of {many}{f'; {answer}' if answer else ''}"
        yield Finding(extra, "ok" if starts else "warning", detail, "" if starts else _reinstall(good))


def _reinstall(packages: list[str]) -> str:
    names = " ".join(package.replace(" ", "==") for package in packages)
    return f"pip install --force-reinstall --no-deps {names}"


def _textworld() -> tuple[bool, str]:
    """Whether TextWorld's interpreter can be loaded and its compiler started."""
    places = [importlib.util.find_spec(name) for name in ("jericho", "textworld")]
    if not all(place and place.submodule_search_locations for place in places):
        return False, "jericho, its interpreter, is missing"
    jericho, textworld = (Path(place.submodule_search_locations[0]) for place in places)  # type: ignore[union-attr,index]
    try:
        ctypes.CDLL(str(jericho / "libfrotz.so"))
    except OSError as error:
        return False, f"its interpreter cannot be loaded: {error}"
    compilers = sorted(textworld.glob("thirdparty/*/share/inform7/Compilers/inform6"))
    if not compilers:
        return False, "its compiler inform6 is missing"
    starts, answer = _run([str(compilers[0]), "-h"])
    return starts, "its compiler starts" if starts else f"its compiler inform6 does not start: {answer}"


_ENGINES: dict[str, Callable[[], tuple[bool, str]]] = {"textworld": _textworld}


def _java() -> Iterator[Finding]:
    users = [entry.id for entry in ENVIRONMENTS if "java" in entry.needs]
    if not users:
        return
    starts, answer = _run(["java", "-version"])
    version = re.search(r'version "(?:1\.)?(\d+)', answer)
    if not starts or not version:
        detail = f"java: {answer}; {', '.join(users)} cannot start"
        yield Finding("java", "missing", detail, "apt-get install default-jre-headless")
    elif int(version[1]) < _JAVA:
        yield Finding("java", "warning", f"{answer}: older than {_JAVA}", "apt-get install default-jre-headless")
    else:
        yield Finding("java", "ok", answer)


def _docker() -> Iterator[Finding]:
    if shutil.which("docker") is None:
        yield Finding("docker", "missing", "not installed; only for sandboxes", "apt-get install docker.io")
        return
    starts, answer = _run(["docker", "version", "--format", "{{.Server.Version}}"])
    if starts:
        yield Finding("docker", "ok", f"daemon {answer}")
    else:
        yield Finding("docker", "missing", f"{answer}; only for sandboxes", "sudo systemctl start docker")


def _bubblewrap() -> Iterator[Finding]:
    yield importlib.import_module("agentgym.sandboxes.doctor").bubblewrap()


def _browser() -> Iterator[Finding]:
    try:
        program = importlib.import_module("agentgym.envs.chromium").program()
    except MissingDependency as error:
        detail, _, fix = str(error).partition(": ")
        yield Finding("chromium", "missing", f"{detail}; only for MiniWoB and tests", fix)
        return
    starts, answer = _run([program, "--version"])
    fix = "" if starts else f"install {program} anew"
    yield Finding("chromium", "ok" if starts else "warning", answer, fix)


def _vllm() -> Iterator[Finding]:
    version = _version("vllm")
    if version:
        yield Finding("vllm", "ok", version)
    else:
        fix = "python3 -m venv vllm && vllm/bin/pip install vllm"
        yield Finding("vllm", "missing", "not installed; it pins its own torch, so keep it apart", fix)


def _disk() -> Iterator[Finding]:
    cache = Path(os.environ.get("AGENTGYM_CACHE") or Path.home() / ".cache" / "agentgym")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(b"x")
    except OSError as error:
        fix = "export AGENTGYM_CACHE=/a/folder/that/can/be/written"
        yield Finding("cache", "warning", f"cannot write to {cache}: {error.strerror}", fix)
    else:
        yield from _room("cache", cache)
    yield from _room("disk", Path.cwd())


def _room(name: str, folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        yield Finding(name, "warning", f"{folder}: {free / 2**30:.1f} GiB free", "df -h  # and make room")
    else:
        yield Finding(name, "ok", f"{folder}: {free / 2**30:.0f} GiB free")


_LOOKS = (_core, _training, _threads, _environments, _java, _docker, _bubblewrap, _browser, _vllm, _disk)


def show(findings: list[Finding], as_json: bool) -> None:
    """Print the findings."""
    if as_json:
        print(json.dumps({"ok": healthy(findings), "findings": [vars(f) for f in findings]}, indent=1))
        return
    width = max(len(f.name) for f in findings)
    for f in findings:
        print(f"{f.name:<{width}}  {f.status:<7}  {f.detail}")
        if f.fix:
            print(f"{'':<{width}}  {'':<7}  -> {f.fix}")


def healthy(findings: list[Finding]) -> bool:
    """Whether the core works."""
    return all(f.status != "broken" for f in findings)
