"""``python -m agentgym.checks.child FOLDER``: answers requests of `agentgym.checks.process`, a line of JSON each."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from agentgym.checks.bench import Bench
from agentgym.checks.catalogue import CHECKS
from agentgym.checks.process import COMMAND, environment
from agentgym.checks.subject import Subject, transcripts
from agentgym.errors import AgentGymError


def _answer(bench: Bench, request: str) -> Any:
    if request == "make":
        try:
            bench.subject.make().close()
        except AgentGymError as error:
            return {"kind": type(error).__name__, "error": str(error)}
        return None
    if request == "transcripts":
        return transcripts(bench.make(), bench.subject.seeds, bench.hinted)
    try:
        return list(CHECKS[request](bench))
    except Exception as error:
        return [f"{type(error).__name__}: {' '.join(str(error).split()) or 'without a message'}"]


def main(folder: Path) -> None:
    """Answer until the input ends; whatever the environment prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    subject: Subject = pickle.loads((folder / "subject").read_bytes())
    subject.register()
    other = folder / "other"
    other.mkdir(exist_ok=True)
    bench = Bench(subject, [*COMMAND, str(folder)], environment(2, other))
    for line in sys.stdin:
        answer = _answer(bench, line.strip())
        bench.close()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
