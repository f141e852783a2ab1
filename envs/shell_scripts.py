"""Tasks of `agentgym.envs.shell` with a program to mend or to write, which is tried on input the agent has not seen."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from agentgym.envs.shell_base import WORDS, Dice, Run, ShellTask, bash, plain

from agentgym.tool_calls import Call

_RUNS = 3


@dataclass(frozen=True)
class _Broken:
    """A program that reads numbers, one a line, from standard input.

    Attributes:
        task: What it is to print.
        good: The program.
        bugs: A part of it, and what stands there in the broken one.
        output: What it prints for numbers.
    """

    task: str
    good: str
    bugs: tuple[tuple[str, str], ...]
    output: Callable[[list[int]], str]


def _longest_rise(numbers: list[int]) -> int:
    best = run = 1
    for a, b in itertools.pairwise(numbers):
        run = run + 1 if b > a else 1
        best = max(best, run)
    return best


_BROKEN = (
    _Broken(
        "the smallest, the largest and the sum of all numbers, with one space between them",
        "import sys\n\nnumbers = [int(line) for line in sys.stdin if line.strip()]\nsmallest = largest = numbers[0]\n"
        "total = 0\nfor number in numbers:\n    if number < smallest:\n        smallest = number\n"
        "    if number > largest:\n        largest = number\n    total += number\nprint(smallest, largest, total)\n",
        (
            ("smallest = largest = numbers[0]", "smallest = largest = 0"),
            ("total += number", "total = number"),
            ("for number in numbers:", "for number in numbers[1:]:"),
            ("for number in numbers:", "for number in numbers"),
            ("print(smallest, largest, total)", "print(smallest + largest + total)"),
        ),
        lambda numbers: f"{min(numbers)} {max(numbers)} {sum(numbers)}",
    ),
    _Broken(
        "the median of all numbers with one decimal, such as 7.0; with an even number of them it is the mean of the "
        "two in the middle",
        "import sys\n\nnumbers = sorted(int(line) for line in sys.stdin if line.strip())\nmiddle = len(numbers) // 2\n"
        "if len(numbers) % 2:\n    median = numbers[middle]\nelse:\n"
        "    median = (numbers[middle - 1] + numbers[middle]) / 2\nprint(f'{median:.1f}')\n",
        (
            (
                "sorted(int(line) for line in sys.stdin if line.strip())",
                "sorted(line for line in sys.stdin if line.strip())",
            ),
            (
                "sorted(int(line) for line in sys.stdin if line.strip())",
                "[int(line) for line in sys.stdin if line.strip()]",
            ),
            ("numbers[middle - 1] + numbers[middle]", "numbers[middle] + numbers[middle + 1]"),
            ("if len(numbers) % 2:", "if len(numbers) % 2 == 0:"),
        ),
        lambda numbers: f"{statistics.median(numbers):.1f}",
    ),
    _Broken(
        "how many numbers the longest run of neighbouring lines has in which each number is larger than the one before",
        "import sys\n\nnumbers = [int(line) for line in sys.stdin if line.strip()]\nbest = run = 1\n"
        "for before, number in zip(numbers, numbers[1:]):\n    run = run + 1 if number > before else 1\n"
        "    best = max(best, run)\nprint(best)\n",
        (
            ("if number > before else 1", "if number >= before else 1"),
            ("if number > before else 1", "if number > before else 0"),
            ("    best = max(best, run)\n", "best = max(best, run)\n"),
            ("zip(numbers, numbers[1:])", "zip(numbers, numbers[2:])"),
        ),
        lambda numbers: str(_longest_rise(numbers)),
    ),
    _Broken(
        "every different number once, in the order in which they first come, with one space between them",
        "import sys\n\nnumbers = [int(line) for line in sys.stdin if line.strip()]\nseen, kept = set(), []\n"
        "for number in numbers:\n    if number not in seen:\n        seen.add(number)\n        kept.append(number)\n"
        "print(' '.join(map(str, kept)))\n",
        (
            ("        seen.add(number)\n", ""),
            ("if number not in seen:", "if number in seen:"),
            ("print(' '.join(map(str, kept)))", "print(' '.join(map(str, sorted(kept))))"),
            ("print(' '.join(map(str, kept)))", "print(' '.join(kept))"),
        ),
        lambda numbers: " ".join(map(str, dict.fromkeys(numbers))),
    ),
    _Broken(
        "two numbers with one space between them: how many of the numbers are even, and the sum of the odd ones",
        "import sys\n\neven = total = 0\nfor line in sys.stdin:\n    if not line.strip():\n        continue\n"
        "    number = int(line)\n    if number % 2 == 0:\n        even += 1\n    else:\n        total += number\n"
        "print(even, total)\n",
        (
            ("if number % 2 == 0:", "if number % 2 == 1:"),
            ("even += 1", "even += number"),
            ("total += number", "total += 1"),
            ("    number = int(line)\n", "    number = line\n"),
            ("print(even, total)", "print(total, even)"),
        ),
        lambda numbers: f"{sum(n % 2 == 0 for n in numbers)} {sum(n for n in numbers if n % 2)}",
    ),
)


def mend_program(rng: np.random.Generator, level: int) -> ShellTask:
    """Find the mistakes in a Python program; there are as many as the level, where they do not touch."""
    dice = Dice(rng, level)
    kind = _BROKEN[dice.number(0, len(_BROKEN) - 1)]
    word = dice.one(WORDS)
    good = kind.good.replace("number", word)
    source, made = good, 0
    for number in rng.permutation(len(kind.bugs)):
        old, new = (part.replace("number", word) for part in kind.bugs[int(number)])
        if made < level and old in source:
            source, made = source.replace(old, new), made + 1
    runs = []
    for count in range(_RUNS):
        # equal neighbours, odd and even counts, one far out in the middle, a median that is no tie, and two rises, the
        # longer of which has two equal numbers inside: every mistake makes a difference
        numbers = (rng.permutation(120)[: 2 * dice.number(6, 10) + count % 2] - 60).tolist()
        numbers = [80, 80, 80, *numbers, 70, 70, 71, 71, 72, -300, -200, -100, 100, 300, 450, 440]
        numbers += [-390, -350, -250, -150, -50, -50, 150, 250, 350, 420, -400]
        numbers.insert(len(numbers) // 2, 500)
        shift = 500 if count == 2 else 0
        numbers = [number + shift for number in numbers]
        text = "".join(f"{number}\n" for number in numbers)
        runs.append(Run(("python3", "numbers.py"), kind.output(numbers), {}, text))
    return ShellTask(
        "numbers.py reads numbers from standard input, one in each line, and is to print "
        f"{kind.task}. It does not: mend it. It will be tried with numbers that you do not see.",
        (
            Call("read_file", {"path": "numbers.py"}),
            Call("write_file", {"path": "numbers.py", "content": good}),
            bash("printf '3\\n1\\n2\\n' | python3 numbers.py"),
        ),
        files=plain({"numbers.py": source}),
        look=(),
        judge=lambda tree, answer: True,
        runs=tuple(runs),
        printed=False,
    )


def _word_counts(dice: Dice) -> tuple[str, str]:
    words = [*dice.sentence(dice.number(10, 40)).split(), "amber", "river", "amber"]
    counts = Counter(words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return " ".join(words) + "\n", "".join(f"{word} {counts[word]}\n" for word in ranked)


def _runs_of_letters(dice: Dice) -> tuple[str, str]:
    words = ["".join(dice.one("aab") for _ in range(dice.number(1, 12))) for _ in range(dice.number(2, 5))]
    told = ["".join(f"{len(list(run))}{letter}" for letter, run in itertools.groupby(word)) for word in words]
    return "\n".join(words) + "\n", "\n".join(told) + "\n"


def _column_means(dice: Dice) -> tuple[str, str]:
    width, height = dice.number(2, 4), dice.number(2, 6)
    rows = [[dice.number(-50, 50) * height for _ in range(width)] for _ in range(height)]
    means = [sum(column) // height for column in zip(*rows, strict=True)]
    return "".join(",".join(map(str, row)) + "\n" for row in rows), ",".join(map(str, means)) + "\n"


_WANTED: tuple[tuple[str, str, Callable[[Dice], tuple[str, str]]], ...] = (
    (
        "prints every different word of it with the number of times it stands there, 'word number' in each line, "
        "the most frequent first and words with the same number in alphabetical order. Words are parted by white "
        "space",
        "import collections, sys\ncounts = collections.Counter(open(sys.argv[1]).read().split())\n"
        "for word in sorted(counts, key=lambda w: (-counts[w], w)):\n    print(word, counts[word])\n",
        _word_counts,
    ),
    (
        "prints for each of its lines the lengths of the runs of equal letters, each followed by the letter: aab "
        "becomes 2a1b",
        "import itertools, sys\nfor line in open(sys.argv[1]):\n"
        "    print(''.join(f'{len(list(g))}{k}' for k, g in itertools.groupby(line.strip())))\n",
        _runs_of_letters,
    ),
    (
        "which is a CSV file of integers without a header, prints the mean of each column as an integer, with "
        "commas between them. (The means are whole numbers.)",
        "import csv, sys\nrows = [[int(x) for x in row] for row in csv.reader(open(sys.argv[1]))]\n"
        "print(','.join(str(sum(column) // len(rows)) for column in zip(*rows)))\n",
        _column_means,
    ),
)


def write_program(rng: np.random.Generator, level: int) -> ShellTask:
    """Write a Python program."""
    dice = Dice(rng, level)
    what, source, example = _WANTED[dice.number(0, len(_WANTED) - 1)]
    shown, output = example(dice)
    runs = []
    for number in range(_RUNS):
        text, wanted = example(dice)
        runs.append(
            Run(("python3", "tool.py", f"unseen-{number}.txt"), wanted, {f"unseen-{number}.txt": text.encode()})
        )
    return ShellTask(
        "Write the Python program tool.py that takes the path of a text file as its only argument and, of this "
        f"file, {what}. For example.txt it must print what expected.txt holds. It will be tried with files that you "
        "do not see.",
        (
            Call("write_file", {"path": "tool.py", "content": source}),
            bash("python3 tool.py example.txt | diff - expected.txt"),
        ),
        files=plain({"example.txt": shown, "expected.txt": output}),
        look=(),
        judge=lambda tree, answer: True,
        runs=tuple(runs),
        printed=False,
    )
