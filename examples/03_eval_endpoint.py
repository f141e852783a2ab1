"""A model behind an OpenAI-compatible endpoint, evaluated on tool use: PythonMath, its code run in a sandbox.

    python examples/03_eval_endpoint.py MODEL http://127.0.0.1:8000/v1 --episodes 20

The key is taken from OPENAI_API_KEY; an address on this machine needs none. Run it again to go on where it was.
"""

import argparse
from pathlib import Path

from agentgym.env_worker import EnvPool
from agentgym.evaluate import evaluate
from agentgym.policies.openai import OpenAIPolicy
from agentgym.report import write_report
from agentgym.rollout import RolloutConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("url")
parser.add_argument("--episodes", type=int, default=20)
parser.add_argument("--out", type=Path, default=Path("runs/endpoint"))
args = parser.parse_args()

config = RolloutConfig(max_turns=8, max_new_tokens=1024, temperature=0.0, concurrency=8)
with EnvPool("agentgym/PythonMath-v0") as pool:
    policy = OpenAIPolicy(args.model, args.url)
    result, played = evaluate(pool, policy, config, args.episodes, log=args.out / "model.jsonl")
low, high = result.success.ci95
print(f"{args.model}: success {result.success.mean:.1%} [{low:.1%}, {high:.1%}], {result.turns.mean:.1f} turns")
print(f"every call, its output and its time: {args.out / 'model.jsonl'} and {write_report(args.out)}")
