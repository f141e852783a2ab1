"""The workspace as a prompting strategy: IterResearch's rounds beside ReAct, with any OpenAI-compatible endpoint.

    python examples/05_deep_research.py MODEL http://127.0.0.1:8000/v1 --episodes 20 --rounds 16

Both answer the same questions with the same tools and as many rounds. ReAct reads everything that was said so far; the
workspace shows the question, the report of the round before, its call and the response, and nothing else. The key is
taken from OPENAI_API_KEY; an address on this machine needs none. Run it again to go on where it was.

`--corpus world` asks about a real corpus, built once with `python -m agentgym.envs.search_corpus`; `--judge
openai:MODEL@URL` lets a model mark the answers instead of comparing words.
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
parser.add_argument("--rounds", type=int, default=16)
parser.add_argument("--corpus", default="tiny")
parser.add_argument("--judge", default="exact")
parser.add_argument("--out", type=Path, default=Path("runs/deep_research"))
args = parser.parse_args()

STRATEGIES = {
    "react": {"codec": "react", "context": "append"},
    "workspace": {"codec": "report", "context": "workspace"},
}

kwargs = {"corpus": args.corpus, "judge": args.judge, "max_rounds": args.rounds}
with EnvPool("agentgym/DeepResearch-v0", kwargs) as pool:
    for name, strategy in STRATEGIES.items():
        config = RolloutConfig(max_turns=args.rounds, max_new_tokens=2048, temperature=0.0, concurrency=8, **strategy)
        policy = OpenAIPolicy(args.model, args.url, name)
        log = args.out / f"{name}.jsonl"
        result, played = evaluate(pool, policy, config, args.episodes, options={"split": "test"}, log=log)
        low, high = result.success.ci95
        read = [t.info.get("prompt_tokens", 0) / len(t.turns) for t in played]
        print(
            f"{name:9}  success {result.success.mean:.1%} [{low:.1%}, {high:.1%}]  {result.turns.mean:.1f} rounds  "
            f"{sum(read) / len(read):.0f} tokens read a round"
        )
print(f"every round: {write_report(args.out)}")
