"""Games of PDDL on Fast Downward, as textworld plays them, with the text of `agentgym.envs.alfworld_text`.

A `World` is what a game is before anybody plays: translated once, and shared by all that play it. An `Engine` is one
copy of the planner's library, which holds one state. Translator and parsers keep their state in modules of their own
and are used by one thread at a time; engines do not touch each other.
"""

from __future__ import annotations

import functools
import io
import sys
import threading
import weakref
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from agentgym.envs import alfworld_cache
from agentgym.envs.alfworld_cache import Translation
from agentgym.envs.alfworld_text import GOAL, Binding, Entity, Facts, Grammar, Objects, Template

from agentgym.errors import EnvError, missing

WORLDS = 64
"""Translated games that are kept (about 2 MB each)."""

_one_at_a_time = threading.RLock()

_idle: list[Any] = []
# Copies of the library whose engines are closed. They cannot be unloaded: all copies register themselves in one list
# (a unique symbol), and a process that still holds one crashes on what an unloaded copy has left there.


@dataclass
class Operator:
    """A ground action.

    Attributes:
        command: What the agent writes.
        template: Its texts.
        bound: What it is done with.
    """

    command: str
    template: Template
    bound: Binding


_Choice = tuple[int, int, Operator]
"""Number of an operator, number of its effects, the operator."""


@dataclass
class World:
    """A game, translated.

    Attributes:
        sas: The task for the planner, compressed.
        grammar: Its texts.
        objects: Its objects by id.
        facts: What holds at the start and is not known to the planner.
        parameters: Action -> its placeholders.
        numbered: Command and choice of the operators seen so far, by their numbers.
    """

    sas: bytes
    grammar: Grammar
    objects: Objects
    facts: Facts
    parameters: dict[str, list[tuple[str, str]]]
    numbered: dict[int, tuple[str, _Choice]] = field(default_factory=dict)
    _domain: str = ""
    _problem: bytes = b""
    _operators: dict[str, Operator] = field(default_factory=dict)

    def operator(self, name: str) -> Operator:
        """The action that the planner calls so: ``openobject agent1 loc_bar_3 fridge_bar_1``."""
        found = self._operators.get(name)
        if found is None:
            action, *arguments = name.split()
            bound = dict(zip(self.parameters[action], arguments, strict=False))
            template = self.grammar.actions[action]
            command = self.grammar.say(template.command, self.facts, self.objects, bound)
            found = self._operators[name] = Operator(command, template, bound)
        return found

    @functools.cached_property
    def replanning(self) -> bytes:
        """The task with all that is irrelevant for the goal left out, compressed."""
        with _one_at_a_time:
            return _translate(self._domain, zlib.decompress(self._problem).decode(), for_search=True)[1]


def world(domain: str, grammar: str, problem: str) -> World:
    """Translate a game, or find it among the last `WORLDS` ones.

    Args:
        domain: PDDL.
        grammar: textworld's ``.twl2``.
        problem: PDDL.

    Raises:
        ConfigError: The grammar cannot be read.
        EnvError: The translator failed.
        MissingDependency: The packages are not installed.
    """
    with _one_at_a_time:
        return _world(domain, grammar, problem)


def forget() -> None:
    """Let go of all translated games."""
    with _one_at_a_time:
        _world.cache_clear()


_grammar = functools.lru_cache(maxsize=8)(Grammar)


@functools.lru_cache(maxsize=WORLDS)
def _world(domain: str, grammar: str, problem: str) -> World:
    try:
        import textworld.envs.pddl  # noqa: F401
    except ImportError as error:
        raise missing("textworld[pddl]", "alfworld") from error
    texts = _grammar(grammar)
    game = _translation(domain, problem)
    facts: Facts = defaultdict(set)
    for predicate, *arguments in game.facts:
        facts[predicate].add(tuple(arguments))
    parameters = {action: [(name, kind) for name, kind in rows] for action, rows in game.parameters.items()}
    for name in parameters:
        if name not in texts.actions:
            raise EnvError(f"the grammar of the game has no text for its action {name!r}")
        if asked := texts.predicates(texts.actions[name].command) & set(game.changing):
            raise EnvError(f"the command of {name!r} depends on what changes: {', '.join(sorted(asked))}")
    types = {name: frozenset(above) for name, above in game.types.items()}
    named = {identity for rows in facts.values() for row in rows for identity in row}
    objects = Objects(_names(named), types)
    return World(game.sas, texts, objects, facts, parameters, {}, domain, zlib.compress(problem.encode(), 1))


def _translation(domain: str, problem: str) -> Translation:
    path = alfworld_cache.place(domain, problem)
    kept = alfworld_cache.read(path)
    if kept is not None:
        return kept
    task, sas = _translate(domain, problem)
    above = {t.name: [t.name, *t.supertype_names] for t in task.types}
    made = Translation(
        sas,
        {o.name: above[o.type_name] for o in task.objects},
        [[atom.predicate, *atom.args] for atom in task.init if getattr(atom, "predicate", "=") != "="],
        {a.name: [[p.name.strip("?"), p.type_name] for p in a.parameters] for a in task.actions},
        sorted({effect.literal.predicate for action in task.actions for effect in action.effects}),
    )
    alfworld_cache.write(path, made)
    return made


def _names(identities: set[str]) -> dict[str, Entity]:
    """What the objects are called: ``drawer_bar_...`` is ``drawer 3``, numbered against the alphabet of their ids."""
    kinds = {}
    for identity in identities:
        kind, bar, _ = identity.partition("_bar_")
        kinds[identity] = (kind + "basin" * ("basin" in identity)) if bar else ""
    count = Counter(kinds.values())
    entities = {}
    for identity in sorted(identities):
        kind = kinds[identity]
        entities[identity] = Entity(identity, f"{kind} {count[kind]}" if kind else f"{identity} ")
        count[kind] -= 1
    return entities


@functools.cache
def _translator() -> tuple[Any, ...]:
    """The modules of the translator, which then print nothing and leave ``sys.argv`` alone."""
    arguments = sys.argv
    sys.argv = ["translate.py", "domain", "task"]  # read when the options are imported
    try:
        from fast_downward.translate import normalize, options, translate
        from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions
    finally:
        sys.argv = arguments
    for name, module in list(sys.modules.items()):
        if name.startswith("fast_downward.translate."):
            vars(module)["print"] = _print
    return normalize, options, translate, lisp_parser, parsing_functions


def _print(*words: Any, file: Any = None, **settings: Any) -> None:
    """What ``print`` means in the translator: files are written, the terminal is not."""
    if file is not None:
        print(*words, file=file, **settings)


def _translate(domain: str, problem: str, for_search: bool = False) -> tuple[Any, bytes]:
    """The task, and the text of it for the planner, compressed.

    Args:
        domain: PDDL.
        problem: PDDL.
        for_search: Leave out what is irrelevant for the goal, which must not be done for playing.
    """
    normalize, options, translate, lisp_parser, parsing_functions = _translator()
    options.filter_unimportant_vars = options.filter_unreachable_facts = for_search
    options.use_partial_encoding = options.add_implied_preconditions = for_search
    options.skip_variable_reordering = not for_search
    options.invariant_generation_max_candidates = 0
    try:
        parsed = [lisp_parser.parse_nested_list(text.split("\n")) for text in (domain, problem)]
        task = parsing_functions.parse_task(*parsed)
        normalize.normalize(task)
        written = io.StringIO()
        translate.pddl_to_sas(task).output(written)
    except (Exception, SystemExit) as error:
        raise EnvError(f"cannot translate a game: {type(error).__name__}: {error}") from error
    return task, zlib.compress(written.getvalue().encode(), 1)


def _give_back(library: Any) -> None:
    library.cleanup()
    _idle.append(library)


class Engine:
    """A copy of the planner's library, with one state of one world in it."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            MissingDependency: The package is not installed.
        """
        try:
            from fast_downward import interface
        except ImportError as error:
            raise missing("fast_downward", "alfworld") from error
        with _one_at_a_time:
            self._library = _idle.pop() if _idle else interface.load_lib()
        self.close = weakref.finalize(self, _give_back, self._library)
        self.close.atexit = False
        self._operator_type, self._atom_type = interface.Operator, interface.Atom
        self._buffer: Any = (self._operator_type * 256)()

    def start(self, world: World) -> None:
        """Begin at the start of a world."""
        self._world = world
        self._facts = {name: set(rows) for name, rows in world.facts.items()}
        self._library.cleanup()
        self._library.load_sas(zlib.decompress(world.sas))
        self._look()

    def intro(self, goal: str) -> str:
        """What is said first."""
        said = self._world.grammar.say(self._world.grammar.intro, self._facts, self._world.objects, {})
        return said.replace(GOAL, goal)

    @property
    def commands(self) -> list[str]:
        """What can be done now, sorted."""
        return sorted(self._choices)

    @property
    def won(self) -> bool:
        """Whether the goal is reached."""
        return bool(self._library.check_goal())

    def do(self, command: str) -> str | None:
        """Do one of ``commands`` and say what happened; None if it is not among them."""
        choice = self._choices.get(command)
        if choice is None:
            return None
        number, n_effects, operator = choice
        effects = (self._atom_type * n_effects)()
        self._library.apply_operator(number, effects)
        for effect in effects:
            self._change(effect.name)
        self._look()
        return self._world.grammar.say(operator.template.feedback, self._facts, self._world.objects, operator.bound)

    def leads(self, commands: list[str], lenient: bool = False) -> list[str] | None:
        """What of these commands reaches the goal from here; the state stays as it is.

        Args:
            commands: To be tried, one after the other, until the goal is reached.
            lenient: Leave out what cannot be done, instead of giving up there.

        Returns:
            The commands that can be done, up to the goal; None if they do not reach it.
        """
        here, choices, done = self._library.get_state_id(), self._choices, []
        try:
            for command in commands:
                if command in self._choices:
                    number, n_effects, _ = self._choices[command]
                    self._library.apply_operator(number, (self._atom_type * n_effects)())
                    done.append(command)
                    if self.won:
                        return done
                    self._look()
                elif not lenient:
                    return None
            return None
        finally:
            self._library.set_state_id(here)
            self._choices = choices

    def plan(self) -> list[str]:
        """The shortest way to the goal from here, found by the planner in 0.2 to 30 s; empty if there is none."""
        with _one_at_a_time:
            self._library.load_sas_replan(zlib.decompress(self._world.replanning))
            if not self._library.replan(False):
                return []
        steps = (self._operator_type * self._library.get_last_plan_length())()
        self._library.get_last_plan(steps)
        return [self._world.operator(step.name).command for step in steps]

    def _change(self, atom: str) -> None:
        """Take over an effect: ``Atom opened(fridge_bar_1)``, or ``NegatedAtom …``, which is a fact ``not_…``."""
        sign, _, fact = atom.partition(" ")
        name, _, arguments = fact.partition("(")
        row = tuple(argument for argument in arguments[:-1].split(", ") if argument)
        gone, new = (name, f"not_{name}") if sign == "NegatedAtom" else (f"not_{name}", name)
        self._facts.get(gone, set()).discard(row)
        self._facts.setdefault(new, set()).add(row)

    def _look(self) -> None:
        """Ask the planner what can be done."""
        count = self._library.get_applicable_operators_count()
        if count > len(self._buffer):
            self._buffer = (self._operator_type * (2 * count))()
        self._library.get_applicable_operators(self._buffer)
        self._choices: dict[str, _Choice] = {}
        numbered = self._world.numbered
        for place in range(count):
            found = self._buffer[place]
            known = numbered.get(found.id)
            if known is None:
                operator = self._world.operator(found.name)
                known = numbered[found.id] = (operator.command, (found.id, found.nb_effect_atoms, operator))
            self._choices.setdefault(*known)
