"""A root file system from Debian's or Ubuntu's own packages: no registry, no root, no running daemon.

apt-get resolves the packages against an empty system and downloads them, dpkg-deb opens them. Their installation
scripts are not run: the few links those would make are made here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from agentgym.errors import MissingDependency

LISTS = Path("/var/lib/apt/lists")
_UPDATE = "run apt-get update as root, then try again"

# What installation scripts, compilers and documentation need, and a box does not. apt is told that they are installed.
_UNWANTED = (
    "debconf dpkg libjs-jquery libjs-sphinxdoc libjs-underscore perl perl-base procps python3-all-dev python3-dev "
    "python3-distutils python3-lib2to3 python3-pythran readline-common sphinx-rtd-theme-common usrmerge"
)
_UNWANTED_FILES = re.compile(
    r"usr/share/doc/(?!.*/copyright$).*[^/]$|"
    r"usr/share/(bash-completion|binfmts|bug|debianutils|gcc|i18n|info|lintian|locale|man|menu|pixmaps|python3)/|"
    r"usr/lib/[^/]+/(gconv|perl|perl-base|libopenblas.*\.a)|usr/lib/valgrind/|(usr/)?lib/systemd/|"
    r"usr/lib/python3[.\d]*/(config-[^/]*|ensurepip|idlelib|lib2to3|pydoc_data|test|turtledemo)/|"
    r"usr/lib/python3/dist-packages/((.*/)?tests|sklearn/datasets/data)/|"  # those hold DataScience-v0's hidden labels
    r"etc/(cron|default|init\.d|pam\.d|update-motd\.d)"
)
_STATUS = "Architecture: all\nMulti-Arch: foreign\nMaintainer: nobody\nDescription: not in the image\n"
_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_LINKS = {"usr/bin/awk": "mawk", "usr/bin/python": "python3", "usr/bin/which": "which.debianutils"}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/workspace:/bin/bash\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files myhostname\n",
}
_FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/local/bin", "var/tmp", "workspace")
_OPEN_FOLDERS = ("tmp", "var/tmp", "workspace")


def lists() -> list[tuple[str, int, int]]:
    """Name, size and time of apt's lists of packages."""
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(LISTS.glob("*_Packages*"))]


def resolve(packages: Iterable[str]) -> dict[str, str]:
    """Name to version of these packages and all they need at run time, as apt's lists have them.

    Raises:
        MissingDependency: If this is no Debian or Ubuntu, or apt has no lists.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise MissingDependency(
                f"{program} is not here: the offline image is made of Debian or Ubuntu packages. "
                "On other systems use `agentgym sandbox build` without --offline"
            )
    with tempfile.NamedTemporaryFile("w", prefix="agentgym-status-") as status:
        for name in _UNWANTED.split():
            status.write(f"Package: {name}\nStatus: install ok installed\nVersion: 999:0\n{_STATUS}\n")
        status.flush()
        options = [f"Dir::State::status={status.name}", "APT::Install-Recommends=false", "Debug::NoLocking=true"]
        said = _run(["apt-get", "-qq", "-s", *(f"-o{o}" for o in options), "install", *packages])
    return dict(sorted(re.findall(r"^Inst (\S+) \((\S+) ", said, re.MULTILINE)))


def fetch(packages: dict[str, str], folder: Path) -> list[Path]:
    """Download packages into a folder; apt-get checks them against its signed lists.

    Raises:
        MissingDependency: If they cannot be had.
    """
    names = [f"{name}={version}" for name, version in packages.items()]
    _run(["apt-get", "-qq", "-oAPT::Sandbox::User=", "-oDebug::NoLocking=true", "download", *names], folder)
    return sorted(folder.glob("*.deb"))


def unpack(archives: Iterable[Path], root: Path) -> None:
    """Unpack packages into a folder as a root file system with merged /usr and no set-user-id programs."""
    for name in ("usr/bin", "usr/lib", "usr/sbin", *_FOLDERS):
        (root / name).mkdir(parents=True, exist_ok=True)
    for archive in archives:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as opened:
            assert opened.stdout
            with tarfile.open(fileobj=opened.stdout, mode="r|") as members:
                for member in members:
                    _place(members, member, root)
        if opened.returncode:
            raise MissingDependency(f"dpkg-deb cannot open {archive.name}")
    for name in _MERGED:
        if (root / "usr" / name).is_dir():
            (root / name).symlink_to(f"usr/{name}")
    for name, target in _LINKS.items():
        if not os.path.lexists(root / name) and (root / name).with_name(target).exists():
            (root / name).symlink_to(target)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    _libraries(root)


def _place(members: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    name = member.name.removeprefix("./").rstrip("/")
    if not name or name == "." or _UNWANTED_FILES.match(f"{name}/" if member.isdir() else name):
        return
    if name.split("/", 1)[0] in _MERGED:
        name = f"usr/{name}"
    path = root / name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        target = member.linkname.removeprefix("./")
        os.link(root / (f"usr/{target}" if target.split("/", 1)[0] in _MERGED else target), path)
    elif member.isreg():
        source = members.extractfile(member)
        assert source
        with path.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        path.chmod(0o755 if member.mode & 0o111 else 0o644)


def _libraries(root: Path) -> None:
    """Link the linear algebra libraries to where the linker looks; packages leave that to update-alternatives."""
    for folder in ("openblas-serial", "blas", "lapack"):
        for library in sorted(root.glob(f"usr/lib/*/{folder}/lib*.so.*")):
            link = library.parents[1] / library.name
            if not os.path.lexists(link):
                link.symlink_to(f"{folder}/{library.name}")


def precompile(root: Path) -> None:
    """Compile the Python modules in a root file system with its own interpreter, so that a read-only box has them.

    The interpreter is started through the file system's own loader: that needs neither root nor chroot.
    """
    (python,) = (p for p in root.glob("usr/bin/python3.*") if re.fullmatch(r"python3\.\d+", p.name))
    loader = next(root.glob("usr/lib*/ld-linux*.so.*"))
    libraries = ":".join(str(p) for p in sorted(root.glob("usr/lib/*-linux-gnu*")))
    command = [str(loader), "--library-path", libraries, str(python), "-I", "-B", "-m", "compileall", "-q"]
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    modules = [p for p in (root / "usr/lib" / python.name, root / "usr/lib/python3/dist-packages") if p.is_dir()]
    environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "SOURCE_DATE_EPOCH": "0"}
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda m: subprocess.run([*command, m], env=environment, capture_output=True), modules):
            if done.returncode:
                raise MissingDependency(f"the image's Python does not start: {done.stderr.decode(errors='replace')}")


def set_modes(root: Path) -> None:
    """Let everybody read what is in a root file system, whatever the umask of who made it."""
    for folder, _, names in os.walk(root):
        os.chmod(folder, 0o755)
        for path in (os.path.join(folder, name) for name in names):
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)
    for name in _OPEN_FOLDERS:
        (root / name).chmod(0o1777)


def write_tar(root: Path, file: IO[bytes]) -> None:
    """Write a root file system as a tar file, the same bytes for the same files: sorted, no times, all of it root's."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(root, ".", filter=_anonymous)  # adds each folder's entries sorted


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _run(command: list[str], folder: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
        raise MissingDependency(f"apt-get: {' '.join(lines)}: {_UPDATE}")
    return done.stdout
