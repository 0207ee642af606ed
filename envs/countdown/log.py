"""The search log: what a solver did on Countdown, as events without text. `envs.countdown.wording` makes it a script.

Each thread of a solver has its own log. A serial solver has one; a spawn/join solver has a log whose `Spawned` events
hold the children's logs in spawn order. What it found is the log's `solution`; no event says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Step(NamedTuple):
    """One operation `a op b = result` on two of the numbers at hand, with a >= b for `-` and `/`."""

    a: int
    op: str
    b: int
    result: int

    def __str__(self) -> str:
        return f"{self.a}{self.op}{self.b}={self.result}"


class Node(NamedTuple):
    """A state of the search: the numbers left, ascending, and the steps that led here from the problem's numbers."""

    numbers: tuple[int, ...]
    path: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """A child kept for later, breadth first."""

    node: Node


@dataclass(frozen=True, slots=True)
class Promising:
    """A child to be searched next: depth first, or by a child thread of the spawn that follows."""

    node: Node


@dataclass(frozen=True, slots=True)
class Visited:
    """The search moves to this node and looks at its children."""

    node: Node


@dataclass(frozen=True, slots=True)
class Tested:
    """A last step whose result is compared with the target."""

    step: Step
    target: int


@dataclass(frozen=True, slots=True)
class Spawned:
    """Sub-searches handed to child threads, in spawn order."""

    children: tuple[SearchLog, ...]


Event = Queued | Promising | Visited | Tested | Spawned


@dataclass(frozen=True, slots=True)
class SearchLog:
    """One thread's search from `start`. `solution`: all steps from the problem's numbers to the target, or None."""

    target: int
    start: Node
    events: tuple[Event, ...]
    solution: tuple[Step, ...] | None
