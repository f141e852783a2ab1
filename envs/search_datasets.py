"""Questions from the files of data sets: HotpotQA, 2WikiMultihopQA, MuSiQue, NQ, TriviaQA, PopQA, Bamboogle.

What a record holds decides how it is read, so files with the same fields under another name are read too:

==================  ============================================================================================
HotpotQA, 2Wiki     JSON list: ``_id``, ``question``, ``answer``, ``supporting_facts``
MuSiQue             JSONL: ``id``, ``question``, ``answer``, ``answer_aliases``, ``question_decomposition``
NQ (open)           JSONL: ``question``, ``answer`` (a list); or two columns, tab between them, as DPR has it
TriviaQA            JSON: ``Data``, a list: ``QuestionId``, ``Question``, ``Answer`` (``Value``, ``Aliases``)
PopQA               TSV: ``id``, ``question``, ``possible_answers`` (a JSON list)
Bamboogle           CSV: ``Question``, ``Answer``
Search-R1, others   JSONL: ``id``, ``question``, ``golden_answers``; R1-Searcher: ``idx``, ``question``, ``answer``
==================  ============================================================================================
"""

from __future__ import annotations

import ast
import csv
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentgym.envs.search_questions import SPLITS, Lookup, Question, split_of

from agentgym.errors import ConfigError, unknown

_ANSWERS = ("golden_answers", "possible_answers", "answers", "answer", "Answer")
_ALIASES = ("answer_aliases", "aliases")
_IDS = ("_id", "id", "QuestionId", "question_id", "idx")


def read_questions(path: str | os.PathLike[str]) -> tuple[Question, ...]:
    """Read a file of questions.

    Raises:
        ConfigError: It cannot be read, or a record is no question with an answer; the message names the record.
    """
    path = Path(path).expanduser()
    try:
        stamp = path.stat()
        return _read(path, stamp.st_mtime_ns, stamp.st_size)
    except OSError as error:
        raise ConfigError(f"cannot read the questions {path}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> tuple[Question, ...]:
    found: dict[str, Question] = {}
    number = 1
    try:
        for record in _records(path):
            if record.get("answerable", True) is not False:
                question = _question(record, str(number))
                found[question.id] = question
            number += 1
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise ConfigError(
            f"{path}, record {number}: not a question with an answer ({type(error).__name__}: {error}); "
            "the forms that are read are listed in agentgym.envs.search_datasets"
        ) from error
    if not found:
        raise ConfigError(f"{path} holds no questions")
    return tuple(found.values())


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        if path.suffix in (".csv", ".tsv"):
            tab = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            rows = csv.reader(file, delimiter=tab)
            first = [column.strip() for column in next(rows, [])]
            if first and not {"question", "Question"} & set(first):
                yield dict(zip(("question", "answer"), first, strict=False))
                first = ["question", "answer"]
            yield from (dict(zip(first, row, strict=False)) for row in rows if row)
        elif path.suffix in (".jsonl", ".ndjson"):
            yield from (json.loads(line) for line in file if line.strip())
        else:
            content = json.load(file)
            yield from content["Data"] if isinstance(content, dict) else content


def _question(record: dict[str, Any], number: str) -> Question:
    text = record.get("question") or record["Question"]
    name = next((str(record[key]) for key in _IDS if record.get(key) not in (None, "")), number)
    given: Any = next((record[key] for key in _ANSWERS if record.get(key)), [])
    answers = [*_texts(given), *(alias for key in _ALIASES for alias in _texts(record.get(key) or []))]
    answers = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    if not isinstance(text, str) or not text.strip() or not answers:
        raise ValueError("question or answer is empty")
    plan = _plan(record, text.strip())
    return Question(name, text.strip(), tuple(answers), len(plan) if len(plan) > 1 else 0, plan)


def _texts(value: Any) -> list[str]:
    """The answers in a field, however it holds them."""
    if isinstance(value, dict):
        return [str(value["Value"]), *map(str, value.get("Aliases") or ())]
    if isinstance(value, str) and re.fullmatch(r"\s*\[.*\]\s*", value, re.DOTALL):
        try:
            value = json.loads(value)
        except ValueError:
            value = ast.literal_eval(value.strip())
    if isinstance(value, list):
        return [str(item) for item in value]
    return [str(value)]


def _plan(record: dict[str, Any], text: str) -> tuple[Lookup, ...]:
    """Searches that a person would make: the steps of MuSiQue, the titles of HotpotQA, or the question itself."""
    steps = record.get("question_decomposition") or []
    said: list[str] = []
    for step in steps:
        query = re.sub(r"#(\d+)", lambda found: str(steps[int(found[1]) - 1]["answer"]), str(step["question"]))
        said.append(query.replace(" >> ", " "))
    if not said:
        said = list(dict.fromkeys(str(fact[0]) for fact in record.get("supporting_facts") or ()))
    return tuple(Lookup(f"I search for: {query}", query) for query in said or [text])


def by_split(questions: str | Mapping[str, str]) -> dict[str, dict[int | None, list[Question]]]:
    """Read questions and sort them.

    Args:
        questions: A file, whose questions are parted by their ids, or a file for each split.

    Returns:
        Split to number of hops (None: all) to questions.

    Raises:
        ConfigError: See `read_questions`.
    """
    parted: dict[str, list[Question]] = {}
    if isinstance(questions, str | os.PathLike):
        for question in read_questions(questions):
            parted.setdefault(split_of(question.id), []).append(question)
    elif isinstance(questions, Mapping):
        for split, path in questions.items():
            if split not in SPLITS:
                raise unknown("split of questions", str(split), SPLITS)
            parted[split] = list(read_questions(path))
    else:
        raise ConfigError(f"questions must be a path, or one for each split, not {type(questions).__name__}")
    found: dict[str, dict[int | None, list[Question]]] = {}
    for split, several in parted.items():
        for question in several:
            for hops in (None, question.hops):
                found.setdefault(split, {}).setdefault(hops, []).append(question)
    return found
