"""Tasks of `agentgym.envs.shell` about files as such: names, places, modes, archives, copies."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile

import numpy as np
from agentgym.envs.shell_base import Dice, File, ShellTask, Tree, bash, both, contents, holds, plain, says

_MONTHS = tuple(f"{year}-{month:02d}" for year in (2022, 2023, 2024) for month in range(1, 13))


def rename_suffix(rng: np.random.Generator, level: int) -> ShellTask:
    """Give files another suffix, in folders too."""
    dice = Dice(rng, level)
    files = {
        f"{folder}/{name}{dice.one(('.jpeg', '.jpeg', '.png', '.jpeg.txt'))}": dice.sentence(4)
        for folder in dice.folders("photos")
        for name in dice.names(3)
    }
    after = {f"{p.removesuffix('.jpeg')}.jpg" if p.endswith(".jpeg") else p: t.encode() for p, t in files.items()}
    return ShellTask(
        "Rename all files under photos whose names end in .jpeg, in all of its folders, so that they end in .jpg. "
        "All other files stay as they are.",
        (
            bash(
                "find photos -type f -name '*.jpeg' -exec "
                'bash -c \'for file; do mv -- "$file" "${file%.jpeg}.jpg"; done\' _ {} +'
            ),
        ),
        files=plain(files),
        look=("photos",),
        judge=holds(after, "photos"),
        printed=False,
    )


def remove_duplicates(rng: np.random.Generator, level: int) -> ShellTask:
    """Keep one of the files that hold the same."""
    dice = Dice(rng, level)
    texts = [dice.sentence(5) for _ in range(3 * level)]
    files = {f"inbox/{name}.txt": dice.one(texts) for name in dice.names(8 * level)}
    kept: dict[str, str] = {}
    for path in sorted(files, key=str.encode):
        kept.setdefault(files[path], path)
    return ShellTask(
        "Some files in the folder inbox hold exactly the same. Of those that do, keep only the one whose name comes "
        "first in the order of bytes (LC_ALL=C) and remove the others.",
        (
            bash(
                'export LC_ALL=C\ndeclare -A seen\nfor file in inbox/*; do\n  hash=$(sha256sum < "$file")\n'
                '  if [[ ${seen[$hash]} ]]; then rm -- "$file"; else seen[$hash]=1; fi\ndone'
            ),
        ),
        files=plain(files),
        look=("inbox",),
        judge=holds({path: text.encode() for text, path in kept.items()}, "inbox"),
        printed=False,
    )


def permissions(rng: np.random.Generator, level: int) -> ShellTask:
    """Set modes by what a file begins with."""
    dice = Dice(rng, level)
    files, wanted = {}, {}
    for folder in dice.folders("tools"):
        for name in dice.names(3):
            script = dice.chance(0.5)
            first = dice.one(("#!/bin/sh", "#!/usr/bin/env python3")) if script else dice.one(("# !", "notes"))
            path = f"{folder}/{name}{dice.one(('.run', '.sh', '.txt'))}"
            files[path] = File(
                f"{first}{dice.sentence(3)}\n".encode(), (0o600, 0o644, 0o700, 0o755, 0o666)[dice.number(0, 4)]
            )
            wanted[path] = 0o750 if script else 0o640

    def judge(tree: Tree, answer: str) -> bool:
        return {path: f.mode for path, f in tree.items() if f.kind == "file"} == wanted

    return ShellTask(
        "Set the modes of all files under tools: 750 for those that begin with #!, 640 for the others. "
        "Do not change what they hold.",
        (
            bash(
                "find tools -type f -exec bash -c '\n"
                'for file; do\n  if [[ $(head -c 2 -- "$file") == "#!" ]]; then chmod 750 -- "$file"\n'
                '  else chmod 640 -- "$file"; fi\ndone\' _ {} +'
            ),
        ),
        files=files,
        look=("tools",),
        judge=both(judge, holds(contents(files, "tools"), "tools")),
        printed=False,
    )


def repack_tar(rng: np.random.Generator, level: int) -> ShellTask:
    """Take some files out of an archive into another one."""
    dice = Dice(rng, level)
    inside = {
        f"{folder}/{name}{dice.one(('.txt', '.txt', '.dat'))}": dice.sentence(dice.number(2, 9)).encode()
        for folder in dice.folders("backup")
        for name in dice.names(2)
    }
    wanted = {path: data for path, data in inside.items() if path.endswith(".txt")}
    return ShellTask(
        "backup.tar.gz is an archive of a folder. Make the archive texts.tar, not compressed, of those of its files "
        "whose names end in .txt, under the same paths.",
        (
            bash(
                "mkdir .unpacked && tar -xzf backup.tar.gz -C .unpacked && cd .unpacked\n"
                "find backup -type f -name '*.txt' | tar -cf ../texts.tar -T - && cd .. && rm -r .unpacked"
            ),
        ),
        files={"backup.tar.gz": File(_tar_gz(inside))},
        look=("texts.tar",),
        judge=lambda tree, answer: _unpacked(tree, "texts.tar") == wanted,
        printed=False,
    )


def _tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _unpacked(tree: Tree, path: str) -> dict[str, bytes] | None:
    """The files in an archive that is not compressed, or None if it is none."""
    found, files = tree.get(path), {}
    if found is None or found.data is None:
        return None
    try:
        with tarfile.open(fileobj=io.BytesIO(found.data), mode="r:") as archive:
            for member in archive:
                if not member.isdir():
                    file = archive.extractfile(member) if member.isreg() else None
                    files[member.name.removeprefix("./")] = b"?" if file is None else file.read(len(found.data))
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, KeyError):
        return None
    return files


def checksums(rng: np.random.Generator, level: int) -> ShellTask:
    """List files with their checksums."""
    dice = Dice(rng, level)
    files = {
        f"{folder}/{name}.bin": rng.bytes(dice.number(1, 200))
        for folder in dice.folders("data")
        for name in dice.names(2)
    }
    rows = [f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files, key=str.encode)]
    return ShellTask(
        "Write the file SHA256SUMS with a line for each file under data: its SHA-256 checksum in hexadecimal, two "
        "spaces, and its path, which begins with data/. Sort the lines by path, in the order of bytes (LC_ALL=C).",
        (
            bash(
                "find data -type f | LC_ALL=C sort | "
                'while IFS= read -r file; do sha256sum -- "$file"; done > SHA256SUMS'
            ),
        ),
        files={path: File(data) for path, data in files.items()},
        look=("SHA256SUMS",),
        judge=says("SHA256SUMS", "".join(rows)),
        printed=False,
    )


def sort_by_date(rng: np.random.Generator, level: int) -> ShellTask:
    """Move files into folders that their names tell."""
    dice = Dice(rng, level)
    files, after = {}, {}
    for name in dice.names(6 * level):
        month, text = dice.one(_MONTHS), dice.sentence(3)
        dated = dice.chance(0.8)
        path = f"report-{month}-{name}.txt" if dated else f"notes-{month}-{name}.txt"
        files[f"inbox/{path}"] = text
        after[f"sorted/{month.replace('-', '/')}/{path}" if dated else f"inbox/{path}"] = text.encode()
    moved = {path: data for path, data in after.items() if path.startswith("sorted/")}
    stayed = {path: data for path, data in after.items() if path.startswith("inbox/")}
    return ShellTask(
        "Move every file of the folder inbox whose name begins with report-YEAR-MONTH- to the folder "
        "sorted/YEAR/MONTH, under the same name. The other files stay.",
        (
            bash(
                'for file in inbox/report-*; do\n  IFS=- read -r _ year month _ <<< "$file"\n'
                '  mkdir -p "sorted/$year/$month" && mv -- "$file" "sorted/$year/$month/"\ndone'
            ),
        ),
        files=plain(files),
        look=("inbox", "sorted"),
        judge=both(holds(moved, "sorted"), holds(stayed, "inbox")),
        printed=False,
    )


def copy_large(rng: np.random.Generator, level: int) -> ShellTask:
    """Copy the files above a size to one folder."""
    dice = Dice(rng, level)
    folders, names, limit = dice.folders("store"), dice.names(8 + 4 * level), dice.number(500, 1500)
    files = {}
    for name in names:
        files[f"{dice.one(folders)}/{name}.dat"] = rng.bytes(limit + 200 * dice.number(-2, 2) + dice.number(-1, 1))
    wanted = {f"large/{path.rpartition('/')[2]}": data for path, data in files.items() if len(data) > limit}
    return ShellTask(
        f"Copy all files under store that are larger than {limit} bytes, in all of its folders, into the new folder "
        "large. Their names are different. Leave store as it is.",
        (bash(f"mkdir -p large && find store -type f -size +{limit}c -exec cp -t large -- {{}} +"),),
        files={path: File(data) for path, data in files.items()},
        look=("store", "large"),
        judge=both(holds(wanted, "large"), holds(files, "store")),
        printed=False,
    )
