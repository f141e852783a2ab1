"""The command line: ``agentgym envs | check | play | train | eval | view | sandbox | doctor``.

Every error a user can make is one line on standard error, with the fix in it, and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from agentgym import __version__
from agentgym.errors import AgentGymError, ConfigError, missing
from agentgym.types import Trajectory

ALGORITHMS = ("sft", "grpo", "ppo", "gigpo", "epo", "poad", "iterresearch", "igpo", "lspo", "craft_gui")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 (failed), 2 (wrong input), 130 (interrupted)."""
    args = _parser().parse_args(argv)
    sys.path.append(os.getcwd())  # where --env my_module:my/Task-v0 may lie
    if not hasattr(args, "run"):
        _parser().print_help()
        return 2
    # scikit-learn, which transformers imports where it is installed, warns on a full disk before we can say so
    warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a script starts with &
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _interrupt)
        return int(args.run(args) or 0)
    except AgentGymError as error:
        if getattr(args, "json", False):
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        _complain(error)
        return 2
    except KeyboardInterrupt:
        print("agentgym: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        _complain(error)
        return 1


def _complain(error: object) -> None:
    """Print an error as one line, whatever it quotes."""
    print(f"agentgym: error: {' '.join(str(error).split())}", file=sys.stderr)


def _interrupt(*_: Any) -> None:
    signal.raise_signal(signal.SIGINT)  # an event loop ends its tasks on this one; an exception would hit any of them


class _Parser(argparse.ArgumentParser):
    """Argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and where to find help, and exit with code 2."""
        _complain(f"{message}; see {self.prog} --help")
        self.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="agentgym", description="Agent environments and a multi-turn LLM agent trainer.")
    parser.add_argument("--version", action="version", version=f"agentgym {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    envs = commands.add_parser("envs", help="list the environments")
    envs.add_argument("--json", action="store_true", help="for machines")
    envs.set_defaults(run=_envs)

    train = commands.add_parser("train", help="train a policy", description="Train a policy.")
    train.add_argument("algorithm", metavar="ALGO", help=" or ".join(ALGORITHMS))
    train.add_argument("--config", metavar="FILE", help="YAML settings")
    train.add_argument("--out", metavar="DIR", help="run folder")
    train.add_argument("--seed", type=int, metavar="S", help="seed of everything (default: the config's, 0)")
    _add_set(train)
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR")
    train.add_argument("--show-config", action="store_true", help="print the resolved settings and stop")
    train.add_argument("--dry-run", action="store_true", help="check settings, shapes and memory without running")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "eval", help="evaluate policies on held-out seeds", description="Evaluate policies on held-out seeds."
    )
    evaluate.add_argument("--env", required=True, metavar="ID", help="environment, see `agentgym envs`")
    evaluate.add_argument(
        "--policy",
        required=True,
        action="append",
        metavar="P",
        help="expert, random, canned:A;B, hf:FOLDER, vllm:FOLDER or openai:MODEL@URL; repeat to compare with the first",
    )
    evaluate.add_argument("--episodes", type=int, default=100, metavar="N", help="default: 100")
    evaluate.add_argument("--seed", type=int, default=0, metavar="S", help="chooses the episodes (default: 0)")
    evaluate.add_argument("--config", metavar="FILE", help="take env and rollout settings from a trainer's YAML")
    _add_set(evaluate)
    evaluate.add_argument("--out", metavar="DIR", help="keep every episode here; run again to resume")
    evaluate.add_argument("--threads", type=int, default=0, help="CPU threads of torch (default: its own choice)")
    evaluate.add_argument("--json", action="store_true", help="for machines")
    evaluate.set_defaults(run=_eval)

    _add_check(commands)
    _add_play(commands)

    view = commands.add_parser("view", help="write the HTML report of a run folder")
    view.add_argument("dir", metavar="DIR", help="run folder")
    view.set_defaults(run=_view)

    importlib.import_module("agentgym.sandboxes.command").add_parser(commands)

    doctor = commands.add_parser("doctor", help="say what is installed, what is missing, and how to mend it")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="check that an environment keeps its promises",
        description="Check that an environment is fit for training language models in it, or compare what it says "
        "with golden transcripts.",
    )
    check.add_argument("env", nargs="?", metavar="ID", help="environment; with --golden, all of them by default")
    check.add_argument("--seeds", type=int, default=3, metavar="N", help="play seeds 0 to N-1 (default: 3)")
    check.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave a check out; may be repeated")
    _add_set(check)
    check.add_argument("--golden", metavar="DIR", help="compare with the golden transcripts in DIR instead")
    check.add_argument("--write", action="store_true", help="with --golden: write them anew")
    check.add_argument("--json", action="store_true", help="for machines")
    check.set_defaults(run=_check)


def _add_play(commands: Any) -> None:
    play = commands.add_parser(
        "play", help="play an episode in the terminal", description="Play an episode in the terminal."
    )
    play.add_argument("env", metavar="ID", help="environment, see `agentgym envs`")
    play.add_argument("--policy", metavar="P", help="who plays instead of you: expert, random, canned:A;B, hf:FOLDER")
    play.add_argument("--seed", type=int, default=0, metavar="S", help="chooses the episode (default: 0)")
    _add_set(play)
    play.set_defaults(run=_play)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="key=value",
        help="change a setting, for example optim.lr=1e-4 env.kwargs.game=twc",
    )


def _envs(args: argparse.Namespace) -> None:
    from agentgym.registration import ENVIRONMENTS

    if args.json:
        rows = [{"id": e.id, "summary": e.summary, "extra": e.extra, "needs": list(e.needs)} for e in ENVIRONMENTS]
        print(json.dumps(rows, indent=1))
        return
    width = max(len(e.id) for e in ENVIRONMENTS)
    for entry in ENVIRONMENTS:
        print(f"{entry.id:<{width}}  {entry.summary}")


def _train(args: argparse.Namespace) -> None:
    from agentgym import config
    from agentgym.errors import unknown

    if args.algorithm not in ALGORITHMS:
        raise unknown("algorithm", args.algorithm, ALGORITHMS)
    values = config.load(args.config) if args.config is not None else {}
    values = config.overlay(values, config.settings(args.set))
    if args.seed is not None:
        values["seed"] = args.seed
    try:
        trainer = importlib.import_module(f"agentgym.trainers.{args.algorithm}")
    except ModuleNotFoundError as error:
        raise missing(str(error.name), "train") from error
    cfg = trainer.make_config(values)
    if args.show_config:
        print(config.dump(cfg), end="")
        return
    if args.dry_run:
        from agentgym.dry_run import dry_run

        print(dry_run(cfg))
        return
    if not args.out:
        raise ConfigError("--out DIR is missing: where shall the run go?")
    results = trainer.main(cfg, args.out, args.resume)
    for name, result in results.items():
        print(f"{name:>7}: success % {_percent(result.success.to_dict())}  return {result.returns.mean:.3f}")
    print(f"model:  {args.out}/final\nreport: {args.out}/report.html")


def _eval(args: argparse.Namespace) -> None:
    from agentgym import config
    from agentgym.evaluate import EvalSettings, compare, evaluate
    from agentgym.policies.specs import fingerprint, make_policy
    from agentgym.run import progress

    for name, least in (("episodes", 1), ("seed", 0), ("threads", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} {getattr(args, name)}: it must be at least {least}")
    loaded = config.load(args.config) if args.config else {}
    values = {k: v for k, v in loaded.items() if k in ("env", "rollout")}
    values = config.overlay(values, config.settings(args.set))
    values = config.overlay(values, {"env": {"id": args.env}})
    chosen = config.build(EvalSettings, values)
    results: list[dict[str, Any]] = []
    baseline: list[Trajectory] = []
    with chosen.env.pool() as pool, progress(disable=args.json) as bar, contextlib.ExitStack() as stack:
        logs = Path(args.out or "runs") / "vllm"
        policies = [_opened(make_policy(spec, args.threads, chosen.rollout, logs), stack) for spec in args.policy]
        for spec, policy in zip(args.policy, policies, strict=True):
            policy.name = spec
            job = bar.add_task(spec, total=args.episodes, note="")
            log = Path(args.out) / f"{_file_name(spec)}.jsonl" if args.out else None
            result, played = evaluate(
                pool,
                policy,
                chosen.rollout,
                args.episodes,
                args.seed,
                chosen.env.eval_options,
                log,
                on_episode=functools.partial(_advance, bar, job),
                fingerprint=fingerprint(spec) if log else "",
            )
            bar.update(job, completed=len(played))
            results.append(result.to_dict())
            if baseline:
                results[-1]["versus"] = compare(args.policy[0], baseline, played).to_dict()
            else:
                baseline = played
    if args.json:
        print(json.dumps(results[0] if len(results) == 1 else results))
        return
    _print_evaluations(results)


def _opened(policy: Any, stack: contextlib.ExitStack) -> Any:
    """A policy, whose server ends with ``stack`` if it has one."""
    return stack.enter_context(policy) if isinstance(policy, contextlib.AbstractContextManager) else policy


def _print_evaluations(results: list[dict[str, Any]]) -> None:
    """Print the results, and how they differ from the first one, as tables."""
    from rich.console import Console

    rows = [
        [r["policy"], r["episodes"], r["failed"], _percent(r["success"]), _interval(r["return"])]
        + ["n/a" if r[k] is None else f"{r[k]['mean']:.1f}" for k in ("turns", "tokens")]
        for r in results
    ]
    names = ["policy", "n", "failed", "success %", "return", "turns", "tokens"]
    tables = [("means over n episodes, with 95 % intervals", _table(names, rows))]
    if len(results) > 1:
        rows = [
            [r["policy"], v["episodes"], v["dropped"], _percent(v["success"], "+"), _interval(v["return"], "+")]
            for r in results[1:]
            for v in [r["versus"]]
        ]
        title = f"difference from {results[0]['policy']} over the same episodes, with paired 95 % intervals"
        tables.append((title, _table(["policy", "n", "dropped", "success, points", "return"], rows)))
    for title, table in tables:
        screen = Console(highlight=False)
        print(title)
        if not screen.is_terminal:
            screen.width = Console(width=10_000).measure(table).maximum
        screen.print(table)


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        first = name == "policy"
        table.add_column(
            name,
            justify="left" if first else "right",
            overflow="fold",
            no_wrap=not first,
            min_width=9 if first else None,
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _interval(estimate: dict[str, Any] | None, sign: str = "", scale: int = 1, digits: int = 2) -> str:
    """A mean with its interval, n/a where there is none."""
    if estimate is None:
        return "n/a"
    mean, low, high = (f"{scale * x:{sign}.{digits}f}" for x in (estimate["mean"], *estimate["ci95"]))
    return f"{mean} [{low}, {high}]"


def _percent(estimate: dict[str, Any] | None, sign: str = "") -> str:
    return _interval(estimate, sign, 100, 1)


def _advance(bar: Any, job: Any, _: Any) -> None:
    bar.advance(job)


def _file_name(spec: str) -> str:
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in spec)
    return name if len(name) <= 60 else f"{name[:50]}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"


def _view(args: argparse.Namespace) -> None:
    from agentgym.report import write_report

    print(write_report(Path(args.dir)))


def _env_settings(cls: Any, args: argparse.Namespace) -> Any:
    """The settings of ``--set`` and the environment; options of ``reset`` only where they are given."""
    from agentgym import config

    values = config.overlay({"env": {"options": {}}}, config.settings(args.set))
    return config.build(cls, config.overlay(values, {"env": {"id": args.env}} if args.env is not None else {}))


def _check(args: argparse.Namespace) -> int:
    from agentgym.checks import command

    if args.write and not args.golden:
        raise ConfigError("--write is for golden transcripts: give their folder with --golden DIR")
    if args.golden:
        return command.golden(args.env, _env_settings(command.CheckSettings, args), Path(args.golden), args)
    if args.env is None:
        raise ConfigError("ID is missing: which environment? See `agentgym envs`")
    if args.seeds < 2:
        raise ConfigError(f"--seeds {args.seeds}: it must be at least 2")
    return command.check(_env_settings(command.CheckSettings, args), args)


def _play(args: argparse.Namespace) -> int:
    from agentgym import play
    from agentgym.env_worker import make_env
    from agentgym.evaluate import EvalSettings
    from agentgym.policies.specs import make_policy

    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: it must be at least 0")
    chosen = _env_settings(EvalSettings, args)
    if args.policy is None:
        return play.by_hand(make_env(chosen.env.id, chosen.env.kwargs), args.seed, chosen.env.options)
    with chosen.env.pool() as pool, contextlib.ExitStack() as stack:
        policy = _opened(make_policy(args.policy, rollout=chosen.rollout), stack)
        policy.name = args.policy
        return play.by_policy(pool, policy, chosen.rollout, args.seed, chosen.env.options)


def _doctor(args: argparse.Namespace) -> int:
    from agentgym import doctor

    findings = doctor.examine()
    doctor.show(findings, args.json)
    return 0 if doctor.healthy(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
