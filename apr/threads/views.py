"""What strands see, as pointers: each strand's view is its references, and a reference stands for all that the strand it
names saw, then that strand's first tokens. Nothing is copied, so a view costs as much memory as the strand has references.

`Views` numbers strands in topological order and counts each one's closure as it comes:

    one reference     the tokens that the other strand saw, and `length`
    several           their union. Views that meet are walked back, latest strand first, to the one strand below which they
                      are equal: the view's *base*. What lies between, its *fan*, is counted token by token once.

A later walk steps over a fan as a whole, from the strand that joined it to its base, if no strand outside refers into it. So
joins that nest, or follow one another, cost time linear in their strands; others are walked strand by strand, and exact too.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class View(NamedTuple):
    """All that strand `number` saw, then its first `length` tokens."""

    number: int
    length: int


class Views:
    """The views of strands 0, 1, 2, ... `tokens[n]`: how many tokens strand n sees, its own not counted.

    Example: `views.add(())`, then `views.add([(0, 5)])` for a strand that sees five tokens of the first: `tokens == [0, 5]`.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._sees: list[Sequence[View]] = []
        self._base: list[View | None] = []
        self._doors: list[int] = []  # references to the base from the strand and its fan
        self._sealed: list[bool] = []  # no strand outside refers into the fan
        self._joined: list[int] = []  # the strand that has it in a sealed fan, or -1
        self._referrers: list[int] = []  # strands that refer to it

    def add(self, sees: Sequence[tuple[int, int]]) -> View | None:
        """Add the next strand. Returns the last of what it sees: a strand and how much of it, or None if it sees nothing.

        "Last" is as in `closure_lengths`: of the references that no other one contains, the last. Its length may be 0.
        """
        last: View | None = None
        views: Sequence[View] = ()
        if len(sees) > 1:
            longest: dict[int, int] = {}
            for number, length in sees:
                longest[number] = max(length, longest.get(number, 0))
            views = [View(*item) for item in longest.items()]
        elif sees:
            views = [View(*sees[0])]
        for view in views:
            self._refer(view.number)
        if len(views) > 1:
            last = self._join(views)
        else:
            if views:
                (last,) = views
            self.tokens.append(self.tokens[last.number] + last.length if last else 0)
            self._base.append(last)
            self._doors.append(1)
            self._sealed.append(True)
        self._sees.append(views)
        self._joined.append(-1)
        self._referrers.append(0)
        return last

    def _refer(self, number: int) -> None:
        """Count a reference from outside, which opens all fans that the strand is in."""
        self._referrers[number] += 1
        joined = self._joined[number]
        while joined >= 0 and self._sealed[joined]:
            self._sealed[joined] = False
            joined = self._joined[joined]

    def _join(self, views: Sequence[View]) -> View:
        """Walk `views` back to their base, the latest strand first: by then its longest view is known."""
        pending = dict(views)
        heap = [-number for number in pending]
        heapq.heapify(heap)
        met = dict.fromkeys(pending, 1)  # references to each strand from the walk
        lengths: dict[int, int] = {}
        tokens = 0
        while True:
            number = -heapq.heappop(heap)
            lengths[number] = pending.pop(number)
            if not heap:
                break
            base = self._base[number]
            tokens += lengths[number]
            if self._sealed[number] and base is not None:  # step over its fan
                tokens += self.tokens[number] - self.tokens[base.number] - base.length
                steps: Sequence[View] = (base,)
                doors = self._doors[number]
            else:
                steps, doors = self._sees[number], 1
            for older, length in steps:
                met[older] = met.get(older, 0) + doors
                if older not in pending:
                    heapq.heappush(heap, -older)
                pending[older] = max(length, pending.get(older, 0))
        *fan, base_number = lengths
        joiner = len(self.tokens)
        self.tokens.append(tokens + self.tokens[base_number] + lengths[base_number])
        self._base.append(View(base_number, lengths[base_number]))
        self._doors.append(met[base_number])
        self._sealed.append(all(met[inside] == self._referrers[inside] for inside in fan))
        if self._sealed[joiner]:
            for inside in fan:
                self._joined[inside] = joiner
        last = next(view.number for view in reversed(views) if met[view.number] == 1)
        return View(last, lengths[last])
