"""What ALFWorld's grammar says of a state: the text generation of textworld's PDDL games, compiled once.

The grammar is read by textworld's own parser. What textworld does with it at every step (parsing each rule and query
anew, deep copies of each context) is done once here, when the grammar is compiled; the texts are the same.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from agentgym.errors import ConfigError

GOAL = "UNKNOWN GOAL"
"""Stands in a grammar for the goal of a game."""

Placeholder = tuple[str, str]
"""Name and type."""
Binding = dict[Placeholder, str]
"""Placeholder -> id of an object."""
Facts = dict[str, set[tuple[str, ...]]]
"""Predicate -> the ids of the objects that it holds for."""


@dataclass(frozen=True)
class Entity:
    """An object as expressions of the grammar see it."""

    id: str
    name: str
    definite: str = "the"
    indefinite: str = "a"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Objects:
    """The objects of a game.

    Attributes:
        entities: Id -> what it is called.
        types: Id -> its type and all types above.
    """

    entities: Mapping[str, Entity]
    types: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class _Query:
    """A conjunction of predicates: ``holds(a:agent, o:object) & isclean(o:object)``."""

    predicates: tuple[tuple[str, tuple[Placeholder, ...]], ...]

    def answers(self, facts: Facts, objects: Objects, bound: Binding) -> Iterator[Binding]:
        """Every way to extend a binding so that all predicates hold, in alphabetical order.

        Different placeholders stand for different objects.
        """
        return self._search(facts, objects, dict(bound), set(bound.values()), 0)

    def _search(self, facts: Facts, objects: Objects, bound: Binding, used: set[str], depth: int) -> Iterator[Binding]:
        if depth == len(self.predicates):
            yield dict(bound)
            return
        name, places = self.predicates[depth]
        fixed = [bound.get(place) for place in places]
        rows = (r for r in facts.get(name, ()) if all(f in (None, v) for f, v in zip(fixed, r, strict=False)))
        for row in sorted(rows):
            if len(row) != len(places):
                continue
            new = {place: value for place, value, old in zip(places, row, fixed, strict=True) if old is None}
            distinct = len(set(new.values())) == len(new) and used.isdisjoint(new.values())
            agree = all(new.get(place, value) == value for place, value in zip(places, row, strict=True))
            if distinct and agree and all(place[1] in objects.types[v] for place, v in new.items()):
                yield from self._search(facts, objects, bound | new, used | set(new.values()), depth + 1)


@dataclass(frozen=True)
class _Rule:
    """A name of the grammar in a text: ``#look.feedback#``."""

    name: str


@dataclass(frozen=True)
class _Expression:
    """Python on the names of objects: ``{o.indefinite + ' ' + o.name}``."""

    code: CodeType


@dataclass(frozen=True)
class _Each:
    """An element, once for each answer to a query, or once where there is none."""

    element: _Rule | _Expression
    query: _Query | None


@dataclass(frozen=True)
class _Listing:
    """The same with commas and 'and' between: ``[{o.name | holds(a:agent, o:object)}]``."""

    each: _Each


Text = tuple[Any, ...]
"""Literal strings, rules, elements and listings, one after another."""


@dataclass(frozen=True)
class Template:
    """The command of an action and the rule that says what it did."""

    command: Text
    feedback: Text


class Grammar:
    """All texts of a family of games. `agentgym.envs.alfworld_engine` makes them, one at a time."""

    def __init__(self, source: str):
        """Parse and compile.

        Args:
            source: A grammar as it stands in ``game.tw-pddl`` (textworld's ``.twl2``).

        Raises:
            ConfigError: It cannot be read.
        """
        from textworld.envs.pddl.logic import GameLogic

        self._queries: dict[str, _Query] = {}
        try:
            logic = GameLogic("", source)
            self._rules = {
                name: [
                    (self._query(rule.condition) if rule.condition else None, self._compile(rule.rhs)) for rule in all_
                ]
                for name, all_ in logic.grammar._rules.items()
            }
            self.actions = {
                name: Template(self._parse(action.template), self._parse(action.feedback_rule))
                for name, action in logic.actions.items()
            }
            self.intro = self._parse("#intro#")
        except ConfigError:
            raise
        except Exception as error:  # tatsu and textworld raise whatever they like
            raise ConfigError(f"cannot read the grammar of a game: {type(error).__name__}: {error}") from error

    def say(self, text: Text, facts: Facts, objects: Objects, bound: Binding) -> str:
        """The text in a state.

        Args:
            text: ``intro``, or of one of ``actions``.
            facts: What holds.
            objects: What there is.
            bound: What the text is about.
        """
        return "".join(self._derive(text, facts, objects, bound))

    def predicates(self, text: Text) -> set[str]:
        """The predicates that a text without rules asks for."""
        asked = [part.each if isinstance(part, _Listing) else part for part in text]
        queries = [part.query for part in asked if isinstance(part, _Each) and part.query]
        return {name for query in queries for name, _ in query.predicates}

    def _derive(self, text: Text, facts: Facts, objects: Objects, bound: Binding) -> Iterator[str]:
        for part in text:
            if isinstance(part, str):
                yield part
            elif isinstance(part, _Rule):
                yield from self._derive(self._choose(part.name, facts, objects, bound), facts, objects, bound)
            elif isinstance(part, _Each):
                yield from self._elements(part, facts, objects, bound)
            else:
                yield from self._listed(list(self._elements(part.each, facts, objects, bound)), facts, objects, bound)

    def _choose(self, name: str, facts: Facts, objects: Objects, bound: Binding) -> Text:
        """The first alternative whose condition holds."""
        for condition, text in self._rules.get(name, ()):
            if condition is None or next(condition.answers(facts, objects, bound), None) is not None:
                return text
        raise ConfigError(f"the grammar of the game has no rule {name!r} for this state")

    def _elements(self, each: _Each, facts: Facts, objects: Objects, bound: Binding) -> Iterator[str]:
        answers: Iterable[Binding] = [bound] if each.query is None else each.query.answers(facts, objects, bound)
        for answer in answers:
            if isinstance(each.element, _Rule):
                yield "".join(self._derive((each.element,), facts, objects, answer))
            else:
                names = {name: objects.entities[value] for (name, _), value in answer.items()}
                yield str(eval(each.element.code, {"__builtins__": {}}, names))

    def _listed(self, elements: list[str], facts: Facts, objects: Objects, bound: Binding) -> Iterator[str]:
        for place, element in enumerate(elements):
            if place:
                rule = "list_separator" if place < len(elements) - 1 else "list_last_separator"
                yield from self._derive((_Rule(rule),), facts, objects, bound)
            yield element
        if not elements:
            yield from self._derive((_Rule("list_empty"),), facts, objects, bound)

    def _parse(self, text: str) -> Text:
        from textworld.envs.pddl.textgen import ContextSensitiveGrammar

        return self._compile(ContextSensitiveGrammar.parse(json.dumps({"": [{"rhs": text}]}))._rules[""][0].rhs)

    def _compile(self, symbols: Sequence[Any]) -> Text:
        return tuple(self._compile_one(symbol) for symbol in symbols)

    def _compile_one(self, symbol: Any) -> Any:
        kind = type(symbol).__name__
        if kind == "TerminalSymbol":
            return str(symbol.symbol)
        if kind == "NonterminalSymbol":
            return _Rule(str(symbol.symbol))
        if kind == "EvalSymbol":
            return _Expression(_safe(symbol.expression))
        if kind == "ListSymbol":
            return _Listing(self._compile_one(symbol.symbol))
        return _Each(self._compile_one(symbol.expression), self._query(symbol.given) if symbol.given else None)

    def _query(self, source: str) -> _Query:
        from textworld.logic import Rule

        if source not in self._queries:
            parsed = Rule.parse_conjunctive_query(source).preconditions
            predicates = tuple((p.name, tuple((h.name, h.type) for h in p.parameters)) for p in parsed)
            self._queries[source] = _Query(predicates)
        return self._queries[source]


_ALLOWED = (ast.Expression, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.Add, ast.BoolOp, ast.Or, ast.And)


def _safe(source: str) -> CodeType:
    """Compile an expression of names, strings, ``+``, ``or`` and ``and``; files of games come from elsewhere."""
    tree = ast.parse(source.strip(), mode="eval")
    for node in ast.walk(tree):
        field = isinstance(node, ast.Attribute) and node.attr in ("id", "name", "definite", "indefinite")
        if not field and not isinstance(node, _ALLOWED):
            raise ConfigError(f"the grammar of a game computes {source!r}, which is more than names of objects")
    return compile(tree, "<grammar>", "eval")
