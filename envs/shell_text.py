"""Tasks of `agentgym.envs.shell` about what stands in files: logs, lists, tables, settings."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from agentgym.envs.shell_base import Dice, ShellTask, Tree, bash, holds, plain, python, says

_SEVERITIES = ("DEBUG", "INFO", "WARN", "ERROR")


def count_lines(rng: np.random.Generator, level: int) -> ShellTask:
    """Count the lines of a severity in nested log files; it stands in messages and in other files too."""
    dice = Dice(rng, level)
    wanted, files, total = dice.one(_SEVERITIES), {}, 0
    for folder in dice.folders("logs"):
        for name in dice.names(2):
            suffix = dice.one((".log", ".log", ".log", ".txt", ".log.old"))
            rows = []
            for second in range(dice.number(5, 20)):
                severity = dice.one(_SEVERITIES)
                total += severity == wanted and suffix == ".log"
                rows.append(
                    f"2024-03-0{level} 10:00:{second:02d} {severity} {dice.one(_SEVERITIES)} {dice.sentence(3)}\n"
                )
            files[f"{folder}/{name}{suffix}"] = "".join(rows)
    return ShellTask(
        "A line of a log file is: date, time, severity, message. How many lines of severity "
        f"{wanted} are there in the files under logs whose names end in .log? Submit the number.",
        (bash(f"find logs -type f -name '*.log' -exec cat {{}} + | awk '$3 == \"{wanted}\"' | wc -l"),),
        files=plain(files),
        look=(),
        judge=lambda tree, answer: answer.strip() == str(total),
    )


def busiest_clients(rng: np.random.Generator, level: int) -> ShellTask:
    """Rank the addresses in an access log."""
    dice = Dice(rng, level)
    clients = [f"10.{dice.number(0, 9)}.{dice.number(0, 99)}.{n}" for n in range(4 + 4 * level)]
    status, count, rows, hits = dice.one(("404", "500", "503")), 2 + level, [], Counter[str]()
    for _ in range(60 * level):
        client, said = dice.one(clients), dice.one(("200", "200", "404", "500", "503"))
        rows.append(f'{client} "GET /{dice.one(("a", "b/404", "c/500"))}" {dice.number(200, 9999)} {said}\n')
        hits[client] += said == status
    ranked = sorted((c for c in hits if hits[c]), key=lambda c: (-hits[c], c.encode()))[:count]
    return ShellTask(
        f"A line of access.log is: client, request in quotes, bytes, status. Write the file top.txt with the {count} "
        f"clients that have the most requests of status {status}: a line for each, 'number client', most requests "
        "first; with the same number in the order of their addresses as text. If there are fewer such clients, "
        "write all.",
        (
            bash(
                f"awk '$NF == {status} {{ n[$1]++ }} END {{ for (c in n) print n[c], c }}' access.log "
                f"| LC_ALL=C sort -k1,1nr -k2,2 | head -n {count} > top.txt"
            ),
        ),
        files=plain({"access.log": "".join(rows)}),
        look=("top.txt",),
        judge=says("top.txt", "".join(f"{hits[c]} {c}\n" for c in ranked)),
        printed=False,
    )


def merge_lists(rng: np.random.Generator, level: int) -> ShellTask:
    """Merge lists without repetitions; on the higher levels the last line of a file has no end."""
    dice = Dice(rng, level)
    files, words = {}, set()
    for name in dice.names(1 + 2 * level):
        found = [w.capitalize() if dice.chance(0.3) else w for w in dice.sentence(dice.number(4, 12)).split()]
        words |= {w.lower() for w in found}
        files[f"lists/{name}.txt"] = "\n".join(found) + ("\n\n" if level == 1 else "")
    return ShellTask(
        "The files in the folder lists hold a word in each line. Write the file all.txt with every word of them "
        "once, in lower case, sorted, a word in each line and no empty lines.",
        (bash("awk 1 lists/* | tr A-Z a-z | grep . | LC_ALL=C sort -u > all.txt"),),
        files=plain(files),
        look=("all.txt",),
        judge=says("all.txt", "\n".join(sorted(words))),
        printed=False,
    )


def replace_word(rng: np.random.Generator, level: int) -> ShellTask:
    """Replace a word, only where it stands alone and only in some files."""
    dice = Dice(rng, level)
    old, new = dice.pick(("amber", "river", "cedar", "stone", "cloud"), 2)
    files = {}
    for folder in dice.folders("docs"):
        for name in dice.names(2):
            words = dice.sentence(dice.number(8, 20)).split()
            words += [old, f"{old}s", f"x{old}", f"{old},", old.capitalize(), f"({old})"]
            files[f"{folder}/{name}{dice.one(('.md', '.md', '.txt'))}"] = " ".join(dice.pick(words, len(words))) + "\n"
    after = {p: re.sub(rf"\b{old}\b", new, t) if p.endswith(".md") else t for p, t in files.items()}
    return ShellTask(
        f"In all files under docs whose names end in .md, put the word {new} in place of the word {old}, wherever it "
        f"stands as a whole word in lower case: not in {old}s or x{old}. Change nothing else.",
        (bash(f"find docs -type f -name '*.md' -exec sed -i 's/\\b{old}\\b/{new}/g' {{}} +"),),
        files=plain(files),
        look=("docs",),
        judge=holds({p: t.encode() for p, t in after.items()}, "docs"),
        printed=False,
    )


def collect_ports(rng: np.random.Generator, level: int) -> ShellTask:
    """Collect a setting of many files; some of them have it in a comment, too."""
    dice = Dice(rng, level)
    files, rows = {}, []
    ports = dice.pick([str(p) for p in range(1000, 9999, 7)], 9)
    for name, port in zip(dice.names(3 + 2 * level), ports, strict=False):
        folder = f"apps/{'/'.join([*dice.pick(('eu', 'us', 'old'), dice.number(0, 2)), name])}"
        space = dice.one(("", " ")) if level > 1 else ""
        settings = [
            f"# port={dice.number(1, 99)}",
            "[server]",
            f"port{space}={space}{port}",
            f"export={dice.number(1, 99)}",
        ]
        files[f"{folder}/settings.ini"] = "\n".join(settings) + "\n"
        files[f"{folder}/settings.ini.old"] = "port=1\n"
        rows.append((int(port), name))
    return ShellTask(
        "Under apps, every application has a folder with a file settings.ini, in which one line sets its port, as "
        "in port=1234. Write the file ports.txt with a line for each of them, 'port name', where the name is that "
        "of the folder in which settings.ini lies; smallest port first.",
        (
            bash(
                "find apps -type f -name settings.ini | while IFS= read -r file; do\n"
                '  folder=$(dirname "$file")\n'
                '  echo "$(sed -n \'s/^port *= *//p\' "$file") ${folder##*/}"\ndone | sort -n > ports.txt'
            ),
        ),
        files=plain(files),
        look=("ports.txt",),
        judge=says("ports.txt", "".join(f"{port} {name}\n" for port, name in sorted(rows))),
        printed=False,
    )


def _table(header: list[str], rows: list[list[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def _is_table(path: str, header: list[str], rows: list[list[Any]]) -> Callable[[Tree, str], bool]:
    """A CSV file holds these rows."""

    def judge(tree: Tree, answer: str) -> bool:
        found = tree.get(path)
        if found is None or found.data is None:
            return False
        try:
            there = [row for row in csv.reader(io.StringIO(found.data.decode(errors="replace"))) if row]
        except csv.Error:
            return False
        return there == [[str(cell) for cell in row] for row in [header, *rows]]

    return judge


def csv_totals(rng: np.random.Generator, level: int) -> ShellTask:
    """Add up a table by groups; on the higher levels cells hold commas and quotes."""
    dice = Dice(rng, level)
    regions = [
        f'{name}, "{name[0]}"' if level > 1 else name for name in dice.pick(("north", "south", "east", "west"), 4)
    ]
    rows, totals = [], Counter[str]()
    for day in range(20 * level):
        region, units, price = dice.one(regions), dice.number(1, 20), dice.number(1, 500)
        rows.append([f"2024-01-{day % 28 + 1:02d}", region, f"{dice.one(('red', 'blue'))}, large", units, price])
        totals[region] += units * price
    return ShellTask(
        "sales.csv is a CSV file with a header. Write the file totals.csv with the header region,total and a row "
        "for each region: the sum of units times price. Sort the rows by region, in the order of bytes.",
        (
            python(
                "import collections, csv\n"
                "totals = collections.Counter()\n"
                'for row in csv.DictReader(open("sales.csv", newline="")):\n'
                '    totals[row["region"]] += int(row["units"]) * int(row["price"])\n'
                'with open("totals.csv", "w", newline="") as file:\n'
                '    csv.writer(file).writerows([["region", "total"], *sorted(totals.items())])'
            ),
        ),
        files=plain({"sales.csv": _table(["date", "region", "item", "units", "price"], rows)}),
        look=("totals.csv",),
        judge=_is_table("totals.csv", ["region", "total"], [[r, totals[r]] for r in sorted(totals)]),
        printed=False,
    )


def csv_join(rng: np.random.Generator, level: int) -> ShellTask:
    """Join two tables; some users have no orders, and some orders no user."""
    dice = Dice(rng, level)
    users = list(enumerate(sorted(dice.names(4 * level)), start=100))
    ids = [number for number, _ in users] + [7, 8]
    orders = [[n, ids[dice.number(0, len(ids) - 1)], dice.number(5, 900)] for n in range(12 * level)]
    rows = []
    for number, name in users:
        amounts = [amount for _, user, amount in orders if user == number]
        rows.append([name, len(amounts), sum(amounts)])
    shuffled = [list(users[i]) for i in rng.permutation(len(users)).tolist()]
    return ShellTask(
        "users.csv has the columns id and name, orders.csv the columns order, user and amount, where user is the id "
        "of a user. Write the file report.csv with the header name,orders,amount and a row for each user of "
        "users.csv, those without orders too: the name, how many orders they have and the sum of their amounts. "
        "Sort the rows by name, in the order of bytes.",
        (
            python(
                "import csv\n"
                'orders = list(csv.DictReader(open("orders.csv", newline="")))\n'
                "rows = []\n"
                'for user in csv.DictReader(open("users.csv", newline="")):\n'
                '    amounts = [int(o["amount"]) for o in orders if o["user"] == user["id"]]\n'
                '    rows.append([user["name"], len(amounts), sum(amounts)])\n'
                'with open("report.csv", "w", newline="") as file:\n'
                '    csv.writer(file).writerows([["name", "orders", "amount"], *sorted(rows)])'
            ),
        ),
        files=plain(
            {"users.csv": _table(["id", "name"], shuffled), "orders.csv": _table(["order", "user", "amount"], orders)}
        ),
        look=("report.csv",),
        judge=_is_table("report.csv", ["name", "orders", "amount"], rows),
        printed=False,
    )


def json_edit(rng: np.random.Generator, level: int) -> ShellTask:
    """Change a setting, remove a key at every depth, add to a list; the rest stays."""
    dice = Dice(rng, level)

    def part(depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {key: dice.one(("a", "b")) for key in dice.pick(("mode", "name", "size"), 2)}
        if dice.chance(0.6):
            values["debug"] = dice.chance(0.5)
        if depth:
            values |= {key: part(depth - 1) for key in dice.pick(("cache", "log", "queue", "users"), 2)}
        return values

    config = {"server": {"host": "localhost", "port": dice.number(1000, 9999), "debug": True}, **part(level)}
    features = dice.pick(("search", "export", "chat", "mail"), 3)
    config["features"] = features[: dice.number(2, 3)]
    port, added = dice.number(1000, 9999), features[2]
    wanted = _without(copy.deepcopy(config), "debug")
    wanted["server"]["port"] = port
    wanted["features"] += [added] * (added not in wanted["features"])

    def judge(tree: Tree, answer: str) -> bool:
        found = tree.get("config.json")
        try:
            there = json.loads(found.data or b"") if found else None
            return json.dumps(there, sort_keys=True) == json.dumps(wanted, sort_keys=True)
        except (ValueError, RecursionError):
            return False

    return ShellTask(
        f"Edit config.json: set the port of the server to {port}, remove the key debug wherever it stands, at any "
        "depth, and "
        f'add "{added}" to the end of the list features unless it is in it. All else stays as it is.',
        (
            python(
                "import json\n"
                'config = json.load(open("config.json"))\n'
                "def clean(value):\n"
                "    if isinstance(value, dict):\n"
                '        return {k: clean(v) for k, v in value.items() if k != "debug"}\n'
                "    return value\n"
                "config = clean(config)\n"
                f'config["server"]["port"] = {port}\n'
                f'if "{added}" not in config["features"]:\n'
                f'    config["features"].append("{added}")\n'
                'json.dump(config, open("config.json", "w"), indent=2)'
            ),
        ),
        files=plain({"config.json": json.dumps(config, indent=4) + "\n"}),
        look=("config.json",),
        judge=judge,
        printed=False,
    )


def _without(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, key) for k, v in value.items() if k != key}
    return value
