"""Every backend passes the one suite that all of them share."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import pytest
from agentgym.sandboxes import Limits, local, open_sandbox, testing
from agentgym.sandboxes.base import GUARANTEES
from helpers_folders import let_all_in

BACKENDS = {
    "docker": functools.partial(open_sandbox, "docker"),
    "bubblewrap": functools.partial(open_sandbox, "bubblewrap"),
    "bubblewrap without an image": lambda: local.open_box(None, Limits()),
    "unsafe-local": functools.partial(open_sandbox, "unsafe-local"),
}
PROMISED = {name: frozenset() if name == "unsafe-local" else frozenset(GUARANTEES) for name in BACKENDS}


def marked(backend, *rest):
    mark = {"docker": pytest.mark.docker, "unsafe-local": ()}.get(backend, pytest.mark.bwrap)
    return pytest.param(backend, *rest, marks=mark, id="-".join((backend, *rest)))


ASKED = [
    marked(backend, name)
    for backend in BACKENDS
    for name, check in testing.CHECKS.items()
    if check.needs is None or check.needs in PROMISED[backend]
]


@pytest.fixture(scope="module")
def boxes(request):
    """A function that gives the backend's box, the same one as long as it lives."""
    if request.param == "docker":
        request.getfixturevalue("docker_host")
    elif request.param.startswith("bubblewrap"):
        request.getfixturevalue("bubblewrap")
    opened = []

    def give():
        if not opened or not opened[-1].alive:
            opened.append(BACKENDS[request.param]())
        return opened[-1]

    give.promised, give.opened = PROMISED[request.param], opened
    yield give
    for box in opened:
        box.close()


@pytest.mark.parametrize(("boxes", "name"), ASKED, indirect=["boxes"])
def test_check(boxes, name):
    box, check = boxes(), testing.CHECKS[name]
    check(box)
    if not check.spends:
        assert box.alive
        box.reset()


@pytest.mark.parametrize("boxes", [marked(backend) for backend in BACKENDS], indirect=True)
def test_one_box_was_enough(boxes):
    assert boxes().guarantees == boxes.promised
    assert len(boxes.opened) <= 2  # the check of close() takes one


def test_a_check_is_asked_of_every_guarantee():
    assert {check.needs for check in testing.CHECKS.values()} == {None, *GUARANTEES}


@pytest.mark.bwrap
@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run without root then")
def test_bubblewrap_as_an_ordinary_user(bubblewrap, tmp_path):
    """The suite, run by a user without rights, with a Python that this user can read."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no system Python for an ordinary user")
    shutil.copytree(os.path.dirname(testing.__file__), tmp_path / "agentgym/sandboxes", ignore=_ignore)
    (tmp_path / "agentgym/__init__.py").touch()
    shutil.copy(sys.modules["agentgym.errors"].__file__, tmp_path / "agentgym/errors.py")
    let_all_in(tmp_path)
    code = """
from agentgym.sandboxes import Limits, local, testing
for outcome in testing.run(lambda: local.open_box(None, Limits())):
    print(outcome)
"""
    done = subprocess.run(
        [python, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(testing.CHECKS), done.stderr
    assert [line for line in lines if "failed" in line] == []
    assert {line.split()[-1] for line in lines if "not promised" in line} <= {"memory", "cpu"}


def _ignore(folder, names):
    return [name for name in names if name == "__pycache__"]
