"""A pretrained model, end to end: fetch SmolLM2-135M, warm start, reinforcement learning, evaluation before and after.

The model plays MapReader (TextWorldExpress) in free text: it writes commands such as "move north" itself. All of its
135 million parameters are trained. Needs Java, 8 GB of memory and 6 GB of disk. Interrupt it with Ctrl-C and run it
again: it goes on where it was.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agentgym.config import load, overlay
from agentgym.errors import AgentGymError
from agentgym.evaluate import Evaluation

HERE = Path(__file__).parent


def train(trainer: Any, config: str, out: Path, changes: dict[str, Any]) -> dict[str, Evaluation]:
    """Run a trainer with a config file, or go on with a run that was interrupted."""
    cfg = trainer.make_config(overlay(load(HERE / "configs" / config), changes))
    return trainer.main(cfg, out, resume=(out / "config.yaml").exists())


def line(name: str, result: Evaluation) -> str:
    """One line of the summary."""
    low, high = result.success.ci95
    return f"{name:<22} success {result.success.mean:6.1%}  [{low:.1%}, {high:.1%}]   return {result.returns.mean:5.2f}"


def main() -> None:
    """Run the steps and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--out", type=Path, help="folder (default: runs/pretrained-SEED)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch (default: its own choice)")
    args = parser.parse_args()
    out = args.out or Path(f"runs/pretrained-{args.seed}")
    started = time.perf_counter()
    fetched = subprocess.run([sys.executable, HERE.parent / "scripts" / "fetch_smollm2.py"], stdout=subprocess.PIPE)
    if fetched.returncode:
        sys.exit(fetched.returncode)

    from agentgym.trainers import grpo, sft

    def changes(model: Path) -> dict[str, Any]:
        return {"seed": args.seed, "model": {"path": str(model), "threads": args.threads}}

    train(sft, "smollm2_sft.yaml", out / "sft", changes(Path(fetched.stdout.decode().strip())))
    results = train(grpo, "smollm2_grpo.yaml", out / "grpo", changes(out / "sft" / "final"))

    before, after = results["before"], results["after"]
    print(line("after the warm start", before))
    print(line("after GRPO", after))
    gain = after.success.mean - before.success.mean
    apart = after.success.ci95[0] > before.success.ci95[1]
    print(
        f"success rose by {100 * gain:.1f} points on {after.episodes} held-out games; the 95 % intervals "
        f"{'do not overlap' if apart else 'overlap'}; {time.perf_counter() - started:.0f} s in all"
    )
    print(f"report: {out}/grpo/report.html   curve: {out}/grpo/learning_curve.png   model: {out}/grpo/final")
    summary = {"before": before, "after": after}
    (out / "pretrained.json").write_text(json.dumps({k: v.to_dict() for k, v in summary.items()}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except AgentGymError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run it again to go on")
