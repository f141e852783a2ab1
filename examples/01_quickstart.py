"""The main job end to end: expert, warm start, reinforcement learning, evaluation before and after, report.

A language model of 0.7 million parameters learns to win MapReader (TextWorldExpress): read where the coin is, walk
there, take it, bring it back and put it into the box. Needs Java; takes minutes on two CPU cores. Interrupt it
with Ctrl-C and run it again: it goes on where it was.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from agentgym.config import load, overlay
from agentgym.env_worker import EnvConfig
from agentgym.errors import AgentGymError
from agentgym.evaluate import Evaluation, evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig

CONFIGS = Path(__file__).parent / "configs"


def line(name: str, result: Evaluation) -> str:
    """One line of the summary."""
    low, high = result.success.ci95
    return f"{name:<22} success {result.success.mean:6.1%}  [{low:.1%}, {high:.1%}]   return {result.returns.mean:5.2f}"


def train(trainer: Any, config: str, out: Path, changes: dict[str, Any]) -> dict[str, Evaluation]:
    """Run a trainer with a config file, or go on with a run that was interrupted."""
    cfg = trainer.make_config(overlay(load(CONFIGS / config), changes))
    return trainer.main(cfg, out, resume=(out / "config.yaml").exists())


def main() -> None:
    """Run the steps and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--algorithm", choices=("grpo", "ppo"), default="grpo", help="how it learns (default: grpo)")
    parser.add_argument("--out", type=Path, help="folder (default: runs/quickstart-SEED)")
    parser.add_argument("--model", help="a Hugging Face id or folder to start from instead of the tiny model")
    args = parser.parse_args()
    out = args.out or Path(f"runs/quickstart-{args.seed}")
    started = time.perf_counter()

    settings = load(CONFIGS / "quickstart_sft.yaml")
    env = EnvConfig(**settings["env"])
    with env.pool() as pool:
        play = RolloutConfig(**settings["rollout"])
        expert, _ = evaluate(pool, ExpertPolicy(), play, 64, options=env.eval_options)
    print(line("expert", expert), flush=True)

    # pretrained weights want smaller steps, and no lesson in reading
    model = {"model": {"path": args.model}, "text_weight": 0.0, "optim": {"lr": 2e-5}} if args.model else {}
    lr = {"optim": {"lr": 3e-6}} if args.model else {}

    from agentgym.trainers import grpo, ppo, sft

    train(sft, "quickstart_sft.yaml", out / "sft", {"seed": args.seed, **model})
    start = {"model": {"path": str(out / "sft" / "final")}}
    trainer, learned = {"grpo": grpo, "ppo": ppo}[args.algorithm], out / args.algorithm
    results = train(trainer, f"quickstart_{args.algorithm}.yaml", learned, {"seed": args.seed, **start, **lr})

    before, after = results["before"], results["after"]
    print(line("after the warm start", before))
    print(line(f"after {args.algorithm.upper()}", after))
    gain = after.success.mean - before.success.mean
    apart = after.success.ci95[0] > before.success.ci95[1]
    print(
        f"success rose by {100 * gain:.1f} points on {after.episodes} held-out games; the 95 % intervals "
        f"{'do not overlap' if apart else 'overlap'}; {time.perf_counter() - started:.0f} s in all"
    )
    print(f"report: {learned}/report.html   curve: {learned}/learning_curve.png   model: {learned}/final")
    summary = {"expert": expert, "before": before, "after": after}
    (out / f"{args.algorithm}.json").write_text(json.dumps({k: v.to_dict() for k, v in summary.items()}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except AgentGymError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run it again to go on")
