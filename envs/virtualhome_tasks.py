"""The two household tasks as automata: states of a few bits, actions with what they need and do, and the words.

An automaton has the tuple ``actions``, the text ``goal``, and functions of a state: ``start`` (of a room), ``moves``,
``solved``, ``bits`` and ``tell``. Rooms are all connected. The agent stands near one thing at most and has two hands.
"""

from __future__ import annotations

from typing import NamedTuple

from agentgym.envs.words import listed

ROOMS = ("kitchen", "bathroom", "bedroom", "living room")

VARIANTS = {
    "pancake": ("pancake", "microwave"),
    "cheese": ("cheese", "microwave"),
    "hamburger": ("hamburger", "microwave"),
    "apple pie": ("apple pie", "microwave"),
    "pizza": ("pizza", "microwave"),
    "dishes": ("dishes", "dishwasher"),
    "clothes": ("clothes", "washing machine"),
}
"""Name of a variant of the task Food -> what is put into what."""

_ROOM_LIST = "There are four rooms: the kitchen, the bathroom, the bedroom and the living room."


class FoodState(NamedTuple):
    """State of the task Food.

    Attributes:
        room: One of `ROOMS`.
        near: ``thing``, ``appliance`` or empty.
        thing: Where the thing is: ``out`` (where it lay at the start), ``hand`` or ``inside``.
        is_open: Whether the appliance is open.
    """

    room: str
    near: str = ""
    thing: str = "out"
    is_open: bool = False


class Food:
    """Put a thing into an appliance and close it: 10 actions, 11 bits."""

    def __init__(self, variant: str):
        """Take the nouns of a variant, a key of `VARIANTS`; they change nothing else."""
        self.thing, self.appliance = VARIANTS[variant]
        thing, appliance = self.thing, self.appliance
        self.goal = f"put the {thing} in the {appliance} and close the {appliance}"
        self._to_thing, self._to_appliance = f"walk to the {thing}", f"walk to the {appliance}"
        self._grab, self._put = f"grab the {thing}", f"put the {thing} in the {appliance}"
        self._open, self._close = f"open the {appliance}", f"close the {appliance}"
        self.actions = (
            *(f"walk to the {room}" for room in ROOMS),
            *(self._to_thing, self._to_appliance, self._grab, self._put, self._open, self._close),
        )

    def start(self, room: str) -> FoodState:
        """The first state of an episode that starts in this room."""
        return FoodState(room)

    def moves(self, state: FoodState) -> dict[str, FoodState]:
        """The admissible actions, and the state that each leads to."""
        found = {f"walk to the {room}": state._replace(room=room, near="") for room in ROOMS if room != state.room}
        if state.room != "kitchen":
            return found
        if state.near != "thing" and state.thing == "out":
            found[self._to_thing] = state._replace(near="thing")
        if state.near == "thing":
            found[self._grab] = state._replace(near="", thing="hand")
        if state.near != "appliance":
            found[self._to_appliance] = state._replace(near="appliance")
        elif not state.is_open:
            found[self._open] = state._replace(is_open=True)
        else:
            found[self._close] = state._replace(is_open=False)
            if state.thing == "hand":
                found[self._put] = state._replace(thing="inside")
            elif state.thing == "inside":
                found[self._grab] = state._replace(thing="hand")
        return found

    def solved(self, state: FoodState) -> bool:
        """Whether the thing is in the closed appliance."""
        return state.thing == "inside" and not state.is_open

    def bits(self, state: FoodState) -> dict[str, bool]:
        """The state as 11 bits."""
        here, thing, appliance = state.room == "kitchen", self.thing, self.appliance
        at_appliance = state.near == "appliance"
        inside_in_sight = state.thing == "inside" and state.is_open
        return {
            **{f"in the {room}": state.room == room for room in ROOMS},
            f"sees the {thing}": here and (state.thing == "out" or inside_in_sight),
            f"is near the {thing}": state.near == "thing" or (at_appliance and inside_in_sight),
            f"holds the {thing}": state.thing == "hand",
            f"sees the {appliance}": here,
            f"is near the {appliance}": at_appliance,
            f"the {appliance} is open": state.is_open,
            f"the {thing} in the {appliance}": state.thing == "inside",
        }

    def tell(self, state: FoodState) -> str:
        """The state as a paragraph whose last sentence the action completes."""
        bits, nouns = self.bits(state), (self.thing, self.appliance)
        near = [noun for noun in nouns if bits[f"is near the {noun}"]]
        return (
            f"{_ROOM_LIST} You are in the {state.room}. "
            f"You see {listed([noun for noun in nouns if bits[f'sees the {noun}']])}. "
            f"{f'You are near {listed(near)}. ' if near else ''}"
            f"You hold {listed([self.thing] if state.thing == 'hand' else [])}. "
            f"The {self.appliance} is {'open' if state.is_open else 'closed'} "
            f"and holds {listed([self.thing] if state.thing == 'inside' else [])}. "
            f"Your goal is to {self.goal}, and your next step is to"
        )


class EntertainmentState(NamedTuple):
    """State of the task Entertainment.

    Attributes:
        room: One of `ROOMS`.
        near: ``chips``, ``milk``, ``coffee table``, ``TV``, ``sofa`` or empty.
        chips: Where they are: ``kitchen``, ``hand`` or ``table`` (the coffee table).
        milk: The same.
        is_on: Whether the TV is on.
        sits: Whether the agent sits on the sofa.
    """

    room: str
    near: str = ""
    chips: str = "kitchen"
    milk: str = "kitchen"
    is_on: bool = False
    sits: bool = False


class Entertainment:
    """Chips and milk at hand, the TV on, the agent on the sofa: 17 actions, 21 bits."""

    goal = "sit on the sofa with the TV on and with the chips and the milk in your hands or on the coffee table"
    actions = (
        *(f"walk to the {place}" for place in (*ROOMS, "chips", "milk", "coffee table", "TV", "sofa")),
        *("grab the chips", "grab the milk", "put the chips on the coffee table", "put the milk on the coffee table"),
        *("turn on the TV", "turn off the TV", "sit on the sofa", "stand up from the sofa"),
    )
    _snacks = ("chips", "milk")
    _furniture = ("coffee table", "TV", "sofa")

    def start(self, room: str) -> EntertainmentState:
        """The first state of an episode that starts in this room."""
        return EntertainmentState(room)

    def moves(self, state: EntertainmentState) -> dict[str, EntertainmentState]:
        """The admissible actions, and the state that each leads to. Who walks away from the sofa stands up first."""
        up = state._replace(sits=False)
        found = {f"walk to the {room}": up._replace(room=room, near="") for room in ROOMS if room != state.room}
        places = {"kitchen": self._at(state, "kitchen"), "living room": self._furniture}.get(state.room, ())
        found |= {f"walk to the {place}": up._replace(near=place) for place in places if place != state.near}
        for snack in self._snacks:
            if state.near == snack:
                found[f"grab the {snack}"] = state._replace(near="", **{snack: "hand"})
            elif state.near == "coffee table" and getattr(state, snack) == "table":
                found[f"grab the {snack}"] = state._replace(**{snack: "hand"})
            elif state.near == "coffee table" and getattr(state, snack) == "hand":
                found[f"put the {snack} on the coffee table"] = state._replace(**{snack: "table"})
        if state.near == "TV" and len(self._at(state, "hand")) < 2:
            found[f"turn {'off' if state.is_on else 'on'} the TV"] = state._replace(is_on=not state.is_on)
        if state.near == "sofa":
            found["stand up from the sofa" if state.sits else "sit on the sofa"] = state._replace(sits=not state.sits)
        return found

    def _at(self, state: EntertainmentState, place: str) -> tuple[str, ...]:
        return tuple(snack for snack in self._snacks if getattr(state, snack) == place)

    def solved(self, state: EntertainmentState) -> bool:
        """Whether the agent sits, the TV is on, and neither chips nor milk are left in the kitchen."""
        return state.sits and state.is_on and not self._at(state, "kitchen")

    def bits(self, state: EntertainmentState) -> dict[str, bool]:
        """The state as 21 bits."""
        found = {f"in the {room}": state.room == room for room in ROOMS}
        in_living_room, at_table = state.room == "living room", state.near == "coffee table"
        for snack in self._snacks:
            place = getattr(state, snack)
            on_table = place == "table"
            found[f"sees the {snack}"] = (on_table and in_living_room) or place == state.room
            found[f"is near the {snack}"] = state.near == snack or (on_table and at_table)
            found[f"holds the {snack}"] = place == "hand"
            found[f"the {snack} on the coffee table"] = on_table
        for thing in self._furniture:
            found[f"sees the {thing}"] = in_living_room
            found[f"is near the {thing}"] = state.near == thing
        found["faces the TV"] = state.near == "TV" or state.sits
        found["the TV is on"] = state.is_on
        found["sits on the sofa"] = state.sits
        return found

    def tell(self, state: EntertainmentState) -> str:
        """The state as a paragraph whose last sentence the action completes."""
        bits = self.bits(state)
        things = (*self._furniture, *self._snacks)
        near = [thing for thing in things if bits[f"is near the {thing}"]]
        held = self._at(state, "hand")
        hands = ", and no hand is free" if len(held) == 2 else ""
        where = f"You are near {listed(near)}. " if near else ""
        if state.sits:
            where = "You sit on the sofa and face the TV. "
        return (
            f"{_ROOM_LIST} You are in the {state.room}. "
            f"You see {listed([thing for thing in things if bits[f'sees the {thing}']])}. "
            f"{where}You hold {listed(held)}{hands}. "
            f"The coffee table holds {listed(self._at(state, 'table'))}. The TV is {'on' if state.is_on else 'off'}. "
            f"Your goal is to {self.goal}, and your next step is to"
        )
