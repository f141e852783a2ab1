"""``agentgym sandbox build | status | run | prune | doctor``."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from typing import Any

from agentgym.errors import ConfigError, SandboxError

_TIMEOUT, _MEMORY, _OUTPUT, _BROKEN = 124, 137, 153, 125
_EXIT = (
    "exit code: the program's, 128+N if signal N ended it, 124 after a timeout, 137 at the memory limit, "
    "153 at the output limit, 125 if the sandbox failed"
)
_MOST_MB = 64


def add_parser(commands: Any) -> None:
    """Add ``sandbox`` to the commands of the command line."""
    sandbox = commands.add_parser(
        "sandbox", help="build the sandbox image, run programs in boxes", description="Boxes for tool calls."
    )
    actions = sandbox.add_subparsers(title="actions", metavar="ACTION", required=True)

    build = actions.add_parser("build", help="make the sandbox image", description="Make the sandbox image.")
    build.add_argument("--offline", action="store_true", help="from Debian or Ubuntu packages, without a registry")
    build.add_argument("--image", choices=("base", "data", "all"), default="all", help="which one (default: all)")
    build.set_defaults(run=_build)

    status = actions.add_parser("status", help="usable backends, images, running boxes")
    status.add_argument("--json", action="store_true", help="for machines")
    status.set_defaults(run=_status)

    run = actions.add_parser(
        "run", help="run a program in a box", description="Run a program in a box of its own.", epilog=_EXIT
    )
    run.add_argument("--backend", default="auto", help="auto (default), docker, bubblewrap or unsafe-local")
    run.add_argument("--image", default="base", metavar="NAME", help="base (default), data, or an image in Docker")
    run.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default: 30)")
    run.add_argument("--memory", type=int, default=512, metavar="MB", help="MiB for all its processes (default: 512)")
    run.add_argument("argv", nargs="+", metavar="ARGV", help="after --: the program and its arguments")
    run.set_defaults(run=_run)

    prune = actions.add_parser("prune", help="remove boxes of dead owners, and root file systems no longer used")
    prune.set_defaults(run=_prune)

    doctor = actions.add_parser("doctor", help="what each backend needs, and how to mend what is missing")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(run=_doctor)


def _say(text: str) -> None:
    print(f"agentgym: {text}", file=sys.stderr, flush=True)


def _build(args: argparse.Namespace) -> None:
    from agentgym.sandboxes import docker, image

    for name in image.IMAGES if args.image == "all" else (args.image,):
        full = image.full_name(name)
        if not args.offline:
            with docker.client() as api:
                print(f"{full}  {image.build_with_registry(name, api, _say)}")
            continue
        say = functools.partial(_say_of, full)
        reason = docker.available()
        if reason:
            image.build(name, say)
            say(f"not imported into Docker: {reason}")
        else:
            with docker.client() as api:
                print(f"{full}  Docker: {image.load(name, api, say)}")
        print(f"{full}  folder for bubblewrap: {image.rootfs_folder(name)}")


def _say_of(what: str, text: str) -> None:
    _say(f"{what}: {text}")


def _status(args: argparse.Namespace) -> None:
    from agentgym.sandboxes import choose, docker, local, running

    from agentgym.errors import AgentGymError

    reasons = {"docker": docker.available(), "bubblewrap": local.available()}
    images, boxes = running.images(), running.processes()
    if not reasons["docker"]:
        with docker.client() as api:
            images, boxes = running.images(api), [*running.containers(api), *boxes]
    try:
        chosen, why_none = choose(), ""
    except AgentGymError as error:
        chosen, why_none = "", str(error)
    if args.json:
        backends = [{"name": name, "usable": not why, "reason": why} for name, why in reasons.items()]
        report = {"auto": chosen or None, "backends": backends}
        print(json.dumps({**report, "images": [vars(i) for i in images], "boxes": [vars(b) for b in boxes]}, indent=1))
        return
    for name, why in reasons.items():
        print(f"{name:<10}  {why or 'usable'}")
    print(f"{'auto':<10}  {chosen or why_none}")
    for i in images:
        size = "not in Docker" if i.docker_mb is None else f"{i.docker_mb} MB in Docker"
        print(f"{'image':<10}  {i.name}: {size}, {f'folder {i.folder}' if i.folder else 'no folder for bubblewrap'}")
    for owner in sorted({b.owner or 0 for b in boxes}):
        theirs = [b for b in boxes if (b.owner or 0) == owner]
        who = f"process {owner} {running.command_of(owner)}".rstrip() if owner else "a process of another machine"
        print(f"{'boxes':<10}  {len(theirs)} of {who}{' (dead: agentgym sandbox prune)' * theirs[0].owner_dead}")
        for box in theirs:
            print(f"{'':<10}    {box.backend} {box.name} {box.image}".rstrip())
    if not boxes:
        print(f"{'boxes':<10}  none")


def _run(args: argparse.Namespace) -> int:
    from agentgym.sandboxes import Limits, open_sandbox

    limits = Limits(memory_mb=args.memory)
    # input and output are held in the box's own memory before they are passed on
    most, kept = (min(_MOST_MB, args.memory // share) << 20 for share in (4, 8))
    stdin = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read(most + 1)
    if len(stdin) > most:
        raise ConfigError(f"standard input is over {most >> 20} MiB, the most that --memory {args.memory} allows")
    try:
        with open_sandbox(args.backend, image=args.image, limits=limits) as box:
            result = box.exec(args.argv, stdin=stdin, timeout=args.timeout, max_output=kept)
    except SandboxError as error:
        _say(f"error: {' '.join(str(error).split())}")
        return _BROKEN
    streams = {sys.stdout: result.stdout.encode(), sys.stderr: result.stderr.encode()}
    for stream, data in streams.items():
        stream.buffer.write(data)
        stream.buffer.flush()
    if max(map(len, streams.values())) > kept < result.output_bytes:
        _say(f"the middle of the output was cut out: over {kept >> 20} MiB")
    reasons = {
        "timeout": (_TIMEOUT, f"ended after {args.timeout:g} s"),
        "memory_limit": (_MEMORY, f"ended at the memory limit of {args.memory} MiB"),
        "output_limit": (_OUTPUT, f"ended at the output limit of {limits.flood_mb} MiB"),
    }
    if result.status in reasons:
        code, reason = reasons[result.status]
        _say(reason)
        return code
    if result.exit_code is None:
        _say(f"ended: {result.status}")
        return _BROKEN
    return result.exit_code if result.exit_code >= 0 else 128 - result.exit_code


def _prune(args: argparse.Namespace) -> None:
    from agentgym.sandboxes import docker, image, reaper

    reason = docker.available()
    if reason:
        _say(f"Docker's boxes are left out: {reason}")
    removed = [*([] if reason else docker.prune()), *reaper.prune_cgroups(), *map(str, image.remove_old())]
    print("\n".join(f"removed {name}" for name in removed) or "nothing to remove")


def _doctor(args: argparse.Namespace) -> int:
    from agentgym.sandboxes.doctor import examine

    from agentgym.doctor import healthy, show

    findings = examine()
    show(findings, args.json)
    return 0 if healthy(findings) else 1
