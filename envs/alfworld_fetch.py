"""Fetch the games of ALFWorld and pack them into one file::

    python -m agentgym.envs.alfworld_fetch [--from FILE_OR_FOLDER] [--to FILE]

The packed file of all 4,027 games has 5.5 MB. Only what is solvable is kept, as ALFWorld does. ALFWorld and its games
are under the MIT licence.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import lzma
import os
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from agentgym.envs import alfworld_games

from agentgym.errors import AgentGymError, ConfigError

URL = "https://github.com/alfworld/alfworld/releases/download/0.4.0/json_2.1.2_tw-pddl.zip"
"""The archive of games that ALFWorld's own download command takes."""


def pack(source: Path, target: Path) -> Counter[str]:
    """Write the games of an archive or a folder into a packed file, which appears whole or not at all.

    Args:
        source: The official zip file, or a folder with ``json_2.1.1``.
        target: The packed file.

    Returns:
        Number of games by split.

    Raises:
        ConfigError: There are no games, or they do not share domain and grammar, or a file is broken.
    """
    count: Counter[str] = Counter()
    head: tuple[str, str] | None = None
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        with lzma.open(name, "wt", preset=9 | lzma.PRESET_EXTREME) as out:
            for split, folder, trial, content in _contents(source):
                if head is None:
                    head = alfworld_games.shared(content)
                    out.write(json.dumps({"domain": head[0], "grammar": head[1]}) + "\n")
                elif head != alfworld_games.shared(content):
                    raise ConfigError(
                        f"{split}/{folder}/{trial} has another domain or grammar than the games before it"
                    )
                row = {"split": split, "name": folder, "trial": trial, **alfworld_games.unpack(content)}
                out.write(json.dumps(row) + "\n")
                count[split] += 1
        if not count:
            raise ConfigError(f"{source} has no solvable game.tw-pddl")
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)
    return count


def _contents(source: Path) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Split, name, trial and content of every game that is played."""
    for parts, text in _files(source):
        split, folder, trial = parts
        if "movable" in folder or "Sliced" in folder:
            continue
        try:
            content = json.loads(text)
            keys = {"pddl_domain", "grammar", "pddl_problem"} - content.keys()
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{'/'.join(parts)}/game.tw-pddl in {source} is broken: {error}") from error
        if content.get("solvable"):
            if keys:
                raise ConfigError(f"{'/'.join(parts)}/game.tw-pddl in {source} lacks {', '.join(sorted(keys))}")
            yield split, folder, trial, content


def _files(source: Path) -> Iterator[tuple[tuple[str, ...], bytes]]:
    if source.is_dir():
        root = alfworld_games.locate(source)
        for path in sorted(root.glob("*/*/*/game.tw-pddl")):
            yield path.relative_to(root).parts[:3], path.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                parts = PurePosixPath(name).parts
                if len(parts) >= 4 and parts[-1] == "game.tw-pddl":
                    yield parts[-4:-1], archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{source} is neither a folder nor a zip file with games: {error}") from error


def fetch(target: Path, url: str = URL) -> Counter[str]:
    """Download the official archive and pack it.

    Args:
        target: The packed file.
        url: Where the archive is.

    Returns:
        Number of games by split.

    Raises:
        ConfigError: The archive cannot be had, or is not what was expected.
    """
    with tempfile.NamedTemporaryFile(suffix=".zip") as archive:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                while block := response.read(1 << 20):
                    archive.write(block)
        except (urllib.error.URLError, OSError) as error:
            raise ConfigError(
                f"cannot download {url}: {error}; with the file or folder at hand, use --from, or ALFWORLD_DATA"
            ) from error
        archive.flush()
        return pack(Path(archive.name), target)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m agentgym.envs.alfworld_fetch", description="Fetch ALFWorld's games."
    )
    parser.add_argument("--from", dest="source", type=Path, help="official zip file or folder, instead of a download")
    parser.add_argument("--to", type=Path, default=alfworld_games.cache_file(), help="packed file (%(default)s)")
    args = parser.parse_args()
    try:
        count = pack(args.source, args.to) if args.source else fetch(args.to)
    except AgentGymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.to}: {', '.join(f'{split} {number}' for split, number in sorted(count.items()))}")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
