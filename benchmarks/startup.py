"""How long `import agentgym` and `agentgym --help` take, beside `import gymnasium` and `import torch`.

Every number is the median of fresh interpreters, without the time of an empty one. Exits with 1 if torch was imported.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

HELP = (
    "import sys; sys.argv = ['agentgym', '--help']\nfrom agentgym.cli import main\ntry: main()\nexcept SystemExit: pass"
)
JOBS = {
    "import gymnasium": "import gymnasium",
    "import agentgym": "import agentgym",
    "agentgym --help": HELP,
    "import torch": "import torch",
}
TARGETS = {"import agentgym": 0.3, "agentgym --help": 0.6}


def measure(code: str) -> tuple[float, float]:
    """Wall and CPU seconds of a fresh interpreter that runs ``code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports_torch(code: str) -> bool:
    """Whether ``code`` imports torch."""
    asked = f"{code}\nimport sys\nsys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", asked], stdout=subprocess.DEVNULL).returncode != 0


def main() -> int:
    """Measure in turns, so that a busy moment of the machine hits all alike, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="interpreters of each kind (default: 7)")
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse_args()
    jobs = {"an empty interpreter": "pass", **JOBS}
    for code in jobs.values():
        measure(code)  # fills the file cache
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(args.repeats):
        for name, code in jobs.items():
            times[name].append(measure(code))
    medians = {name: [statistics.median(t) for t in zip(*found, strict=True)] for name, found in times.items()}
    empty = medians.pop("an empty interpreter")
    found = {name: [t - e for t, e in zip(both, empty, strict=True)] for name, both in medians.items()}
    heavy = [name for name in TARGETS if imports_torch(JOBS[name])]
    if args.json:
        print(json.dumps({"wall_cpu_s": found, "empty_s": empty, "imports_torch": heavy}))
        return bool(heavy)
    print(f"{'seconds':<18} {'wall':>7} {'CPU':>7}   median of {args.repeats}; load {os.getloadavg()[0]:.1f}")
    for name, (wall, cpu) in found.items():
        target = f"   target {TARGETS[name]} s" if name in TARGETS else ""
        print(f"{name:<18} {wall:7.3f} {cpu:7.3f}{target}")
    ratio = found["import agentgym"][1] / found["import gymnasium"][1]
    print(f"import agentgym costs {ratio:.2f} times the CPU of import gymnasium")
    for name in heavy:
        print(f"{name} imports torch: it must not")
    return bool(heavy)


if __name__ == "__main__":
    sys.exit(main())
