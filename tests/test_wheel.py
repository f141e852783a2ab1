"""What is installed from the wheel is what is in the tree: three outer folders, data files, every environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import agentgym
from agentgym.registration import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
OUTER = ("envs", "trainers", "sandboxes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree, built in a copy of it."""
    source = tmp_path_factory.mktemp("source") / "tree"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("agentgym", *OUTER):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", source.parent, source)
    (built,) = source.parent.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but the wheel in it."""
    folder = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def python(*arguments, path="", cwd=None, check=True):
    environment = {**os.environ, "PYTHONPATH": str(path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_wheel_holds_every_file_and_no_other(wheel):
    assert wheel.name == f"agentgym_lab-{agentgym.__version__}-py3-none-any.whl"
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = set()
    for folder, target in (("agentgym", "agentgym"), *((name, f"agentgym/{name}") for name in OUTER)):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                expected.add(f"{target}/{file.relative_to(ROOT / folder)}")
    assert names == expected
    assert {"agentgym/py.typed", "agentgym/report.html", "agentgym/report.css", "agentgym/report.js"} <= names


def test_the_installed_package_is_the_one_that_is_used(installed, tmp_path):
    code = (
        "import agentgym, agentgym.envs, agentgym.trainers.grpo, agentgym.sandboxes\n"
        "from importlib import metadata, resources\n"
        "for module in (agentgym, agentgym.envs, agentgym.trainers.grpo, agentgym.sandboxes): print(module.__file__)\n"
        "for name in ('report.html', 'report.css', 'report.js'):\n"
        "    assert resources.files('agentgym').joinpath(name).read_text()\n"
        "assert metadata.version('agentgym-lab') == agentgym.__version__\n"
    )
    files = python("-c", code, path=installed, cwd=tmp_path).stdout.split()
    assert len(files) == 4
    assert all(Path(f).is_relative_to(installed) for f in files)


def test_the_installed_command_runs(installed, tmp_path):
    script = installed / "bin" / "agentgym"
    done = python(script, "envs", path=installed, cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [e.id for e in ENVIRONMENTS]


@pytest.mark.java
def test_every_environment_can_be_made_from_the_wheel(installed, tmp_path):
    code = (
        "import gymnasium as gym, agentgym, json, sys\n"
        "for name, kwargs in json.loads(sys.argv[1]):\n"
        "    env = gym.make(name, **kwargs)\n"
        "    observation, info = env.reset(seed=1)\n"
        "    assert isinstance(observation, str) and observation\n"
        "    print(sys.modules[type(env.unwrapped).__module__].__file__)\n"
        "    env.close()\n"
    )
    wanted = json.dumps([(e.id, e.variants[0]) for e in ENVIRONMENTS])
    files = python("-c", code, wanted, path=installed, cwd=tmp_path).stdout.split()
    assert len(files) == len(ENVIRONMENTS)
    assert all(Path(f).is_relative_to(installed / "agentgym" / "envs") for f in files)


@pytest.mark.parametrize("name", OUTER)
def test_the_outer_folders_are_not_imported_by_their_bare_names(name):
    done = python("-c", f"import {name}", cwd=ROOT, check=False)
    assert done.returncode == 1
    fix = f"ImportError: import this package as agentgym.{name}, not as a top-level module"
    assert done.stderr.splitlines()[-1] == fix
