"""The sandbox image: the same bytes each time, no root needed, with what it promises and nothing it must not have."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys

import pytest
from agentgym.sandboxes import Limits, SandboxUnavailable, debian, docker, image, local
from helpers_folders import let_all_in

from agentgym.errors import ConfigError, MissingDependency

NOBODY = 65534

BUILD = """
import os, sys
from agentgym.sandboxes import image
if os.getuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.umask(0o077)
print(image.build("base"))
"""


@pytest.fixture(scope="module")
def base(bubblewrap):
    return image.rootfs_folder("base")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path))
    return image.cache_folder()


def tar_of(folder):
    file = io.BytesIO()
    debian.write_tar(folder, file)
    return file.getvalue()


def test_names():
    assert image.full_name("base") == image.BASE_IMAGE
    assert image.full_name("python:3.12-slim") == "python:3.12-slim"
    assert image.short_name(image.DATA_IMAGE) == "data"
    with pytest.raises(ConfigError, match=r"'python:3\.12-slim': choose base or data"):
        image.short_name("python:3.12-slim")


@pytest.mark.bwrap
def test_an_ordinary_user_makes_the_same_bytes(base, tmp_path):
    theirs = tmp_path / "cache"
    theirs.mkdir()
    if os.getuid() == 0:
        os.chown(theirs, NOBODY, NOBODY)
        let_all_in(tmp_path)
    environment = {**os.environ, "AGENTGYM_CACHE": str(theirs), "TMPDIR": str(theirs), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    made = theirs / "sandbox" / base.name
    assert done.stdout.strip() == str(made)
    assert tar_of(made) == tar_of(base)


@pytest.mark.bwrap
def test_what_is_in_the_folder(base):
    for path in base.rglob("*"):
        mode = path.lstat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID), path
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
        assert stat.S_ISLNK(mode) or mode & stat.S_IROTH, path
    for name in ("workspace", "tmp", "var/tmp"):
        assert stat.S_IMODE((base / name).stat().st_mode) == 0o1777
    for name in ("locale", "man", "info"):
        assert not (base / "usr/share" / name).exists()
    assert {p.name for p in (base / "usr/share/doc").rglob("*") if not p.is_dir()} <= {"copyright"}
    library = next(base.glob("usr/lib/python3.*"))
    compiled = list(library.rglob("*.pyc"))
    assert len(compiled) == len(list(library.rglob("*.py"))) > 400
    for path in compiled:  # by a hash that is not checked: the source's time does not matter
        assert path.read_bytes()[4:8] == b"\1\0\0\0", path
    megabytes = sum(p.lstat().st_size for p in base.rglob("*")) / 1e6
    assert megabytes < 90


def open_box(backend, name):
    if backend == "docker":
        return docker.open_box(image.full_name(name), Limits())
    return local.open_box(image.rootfs_folder(name), Limits())


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("bubblewrap", marks=pytest.mark.bwrap)]
)
def backend(request):
    request.getfixturevalue("docker_host" if request.param == "docker" else "bubblewrap")
    return request.param


def test_the_programs_and_modules_of_base(backend):
    with open_box(backend, "base") as box:
        said = box.exec("echo b a | tr ' ' '\\n' | sort | sed s/a/x/ | awk '{print NR $1}' | grep -v q; which python")
        assert (said.stdout, said.stderr, said.exit_code) == ("1x\n2b\n/usr/bin/python\n", "", 0)
        modules = "asyncio, bz2, ctypes, curses, dbm, decimal, hashlib, json, lzma, readline, sqlite3, ssl, zoneinfo"
        said = box.exec(["python3", "-c", f"import {modules}; print(json.__cached__)"])
        assert said.ok, said.stderr
        assert said.stdout.startswith("/usr/lib/python3.")
        assert box.exec("id -un; touch /tmp/a a; ls ~").stdout == "nobody\na\n"


def test_the_modules_of_data(backend):
    code = """
import numpy as np, pandas as pd, scipy.stats
from sklearn.linear_model import LogisticRegression
import re
x = np.random.default_rng(0).normal(size=(200, 3))
y = x[:, 0] > 0
print(LogisticRegression().fit(x, y).score(x, y) > 0.95, pd.DataFrame(x).shape, round(scipy.stats.norm.cdf(0), 2))
print(sorted(set(re.findall(r"[^/]+/lib(?:blas|openblas|lapack)[.\\w]*", open("/proc/self/maps").read()))))
"""
    with open_box(backend, "data") as box:
        said = box.exec(["python3", "-c", code])
        first, libraries = said.stdout.splitlines()
        assert first == "True (200, 3) 0.5", said
        assert libraries == str([f"openblas-serial/lib{name}" for name in ("blas.so.3", "lapack.so.3", "openblas")])
        # the labels of the data sets that come with scikit-learn are DataScience-v0's to grade with
        said = box.exec(["python3", "-c", "from sklearn.datasets import load_iris; load_iris()"])
        assert said.exit_code == 1
        assert "No module named 'sklearn.datasets.data'" in said.stderr


@pytest.mark.docker
def test_docker_has_the_image_once(docker_host):
    with docker.client() as api:
        here = api.inspect_image(image.BASE_IMAGE)
        assert image.load("base", api, pytest.fail) == here["Id"]
        config = here["Config"]
        assert config["WorkingDir"] == "/workspace"
        assert config["Labels"]["agentgym.sandbox.key"] in str(image.rootfs_folder("base"))
        assert here["Size"] < 90e6


@pytest.mark.docker
@pytest.mark.bwrap
def test_another_image_takes_the_place_of_an_old_one(docker_daemon, cache, base, monkeypatch):
    """With one package less, in a cache and a daemon of its own."""
    monkeypatch.setitem(image._PACKAGES, "base", [p for p in image._PACKAGES["base"] if p != "diffutils"])
    with docker.client() as api:
        old = api.inspect_image(image.BASE_IMAGE)["Id"]
        new = image.load("base", api)
        assert new != old
        assert [row["Id"] for row in api.images()] == [new]
    folder = image.rootfs_folder("base")
    assert folder.parent == cache.resolve()
    assert folder.name != base.name
    assert not (folder / "usr/bin/cmp").exists()


@pytest.mark.docker
def test_the_dockerfile(docker_daemon):
    """With the image itself in the place of the one that a registry would give; that one has no pip."""
    with docker.client() as api:
        before = api.inspect_image(image.BASE_IMAGE)["Id"]
        api.tag(image.BASE_IMAGE, "python", "3.11-slim")
        said = []
        after = image.build_with_registry("base", api, said.append)
        assert after != before
        assert any("compileall" in line for line in said)
        with open_box("docker", "base") as box:
            assert box.exec("pwd; stat -c %a /workspace").stdout == "/workspace\n1777\n"
        with pytest.raises(SandboxUnavailable, match=r"cannot be built: .*; without a registry use --offline"):
            image.build_with_registry("data", api)


def test_what_was_left_by_a_killed_build_goes(cache, monkeypatch):
    (cache / ".building-old" / "root").mkdir(parents=True)
    (cache / ".building-base").symlink_to("nowhere")
    monkeypatch.setattr(image, "_make", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        image.build("base")
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert image.rootfs_folder("base") is None


@pytest.mark.bwrap
def test_old_folders_go_when_nobody_is_in_them(cache, bubblewrap, base):
    for name in ("base-0123456789ab", "base-00000000000a", base.name, "base-keep"):
        (cache / name).mkdir(parents=True)
    (cache / "base").symlink_to(base.name)
    used = cache / "base-00000000000a"
    command = [bubblewrap, "--ro-bind", "/", "/", "--ro-bind", used, "/mnt", "sh", "-c", "echo; read _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert image.remove_old() == [cache / "base-0123456789ab"]
        process.stdin.close()
    assert image.remove_old() == [used]
    assert (cache / "base-keep").is_dir()
    assert (cache / base.name).is_dir()


def test_no_debian(monkeypatch, tmp_path, cache):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"apt-get is not here.*without --offline"):
        image.build("base")


def test_no_package_lists(monkeypatch, tmp_path, cache):
    if not os.path.exists("/usr/bin/apt-get"):
        pytest.skip("no apt-get")
    (tmp_path / "lists").mkdir()
    (tmp_path / "apt.conf").write_text(f'Dir::State::lists "{tmp_path}/lists";')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    with pytest.raises(MissingDependency, match="run apt-get update as root"):
        image.build("base")
