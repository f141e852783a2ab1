"""``agentgym check``: the checks, or the golden transcripts, from the command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgym import golden as transcripts
from agentgym.checks import CHECKS, Failure, check_agent_env
from agentgym.env_worker import EnvConfig
from agentgym.errors import MissingDependency
from agentgym.registration import ENVIRONMENTS
from agentgym.run import progress


@dataclass
class CheckSettings:
    """What ``agentgym check --set`` can change."""

    env: EnvConfig = field(default_factory=EnvConfig)


def check(settings: CheckSettings, args: argparse.Namespace) -> int:
    """Run the checks, print the report, and return the exit code."""
    env = settings.env
    with progress(disable=args.json) as bar:
        job = bar.add_task("check", total=len(CHECKS), note="")
        report = check_agent_env(
            *(env.id, env.kwargs, env.options, range(args.seeds), args.skip),
            on_check=lambda name: bar.update(job, advance=1, note=name),
        )
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0 if report.passed else 1


def golden(env_id: str | None, settings: CheckSettings, folder: Path, args: argparse.Namespace) -> int:
    """Compare or write golden transcripts, print what was found, and return the exit code."""
    files = _files(env_id, settings.env.kwargs, folder)
    failures, compared, skipped = [], [], {}
    with progress(disable=args.json) as bar:
        job = bar.add_task("golden", total=len(files), note="")
        for path, (name, kwargs) in files.items():
            try:
                if args.write:
                    transcripts.write(path, name, kwargs)
                elif found := transcripts.compare(path):
                    failures.append(Failure("golden", found))
                compared.append(str(path))
            except MissingDependency as error:
                if env_id is not None:
                    raise
                skipped[str(path)] = str(error)
            bar.update(job, advance=1, note=path.stem)
    if env_id is None and not args.write:
        for path in sorted(set(folder.glob("*.txt")) - set(files)):
            failures.append(Failure("golden", f"{path} belongs to no environment of the registry: remove it"))
    if args.json:
        rows = [vars(f) for f in failures]
        print(json.dumps({"passed": not failures, "failures": rows, "files": compared, "skipped": skipped}))
        return 1 if failures else 0
    for failure in failures:
        print(failure.message)
    for file, reason in skipped.items():
        print(f"{file}: skipped: {reason}")
    print(f"{len(compared)} golden transcripts {'written' if args.write else 'compared'}, {len(failures)} differ")
    return 1 if failures else 0


def _files(env_id: str | None, kwargs: dict[str, Any], folder: Path) -> dict[Path, tuple[str, dict[str, Any]]]:
    """The files to compare or write: of the arguments given, else of every variant that the registry names."""
    if env_id is not None:
        entry = next((e for e in ENVIRONMENTS if e.id == env_id), None)
        given = (kwargs,) if kwargs or entry is None else entry.variants
        return {transcripts.path_of(folder, env_id, k): (env_id, k) for k in given}
    return {transcripts.path_of(folder, e.id, k): (e.id, k) for e in ENVIRONMENTS for k in e.variants}
