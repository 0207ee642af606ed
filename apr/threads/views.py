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
from collections.abc import Mapping, Sequence
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
        self._sees: list[tuple[tuple[int, int], ...]] = []
        self._base: list[int] = []  # -1 where nothing is seen
        self._length: list[int] = []  # of the base, as it is seen
        self._doors: list[int] = []  # references to the base from the strand and its fan
        self._sealed: list[bool] = []  # no strand outside refers into the fan
        self._joined: list[int] = []  # the strand that has it in a sealed fan, or -1
        self._referrers: list[int] = []  # strands that refer to it

    def add(self, sees: Sequence[tuple[int, int]]) -> View | None:
        """Add the next strand. Returns the last of what it sees: a strand and how much of it, or None if it sees nothing.

        "Last" is as in `closure_lengths`: of the references that no other one contains, the last. Its length may be 0.
        """
        longest: dict[int, int] = {}
        for number, length in sees:
            longest[number] = max(length, longest.get(number, 0))
        for number in longest:
            self._refer(number)
        last = None
        if len(longest) > 1:
            last = self._join(longest)
        elif longest:
            ((number, length),) = longest.items()
            self._close(number, length, tokens=0, doors=1, sealed=True)
            last = View(number, length)
        else:
            self._close(-1, 0, tokens=0, doors=0, sealed=True)
        self._sees.append(tuple(longest.items()) if len(longest) > 1 else ())
        self._joined.append(-1)
        self._referrers.append(0)
        return last

    def _close(self, base: int, length: int, tokens: int, doors: int, sealed: bool) -> None:
        """Note the base of the strand that is being added; `tokens`: in its fan."""
        self.tokens.append(tokens + (self.tokens[base] + length if base >= 0 else 0))
        self._base.append(base)
        self._length.append(length)
        self._doors.append(doors)
        self._sealed.append(sealed)

    def _refer(self, number: int) -> None:
        """Count a reference from outside, which opens all fans that the strand is in."""
        self._referrers[number] += 1
        joined = self._joined[number]
        while joined >= 0 and self._sealed[joined]:
            self._sealed[joined] = False
            joined = self._joined[joined]

    def _join(self, views: Mapping[int, int]) -> View:
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
            base, doors = self._base[number], 1
            tokens += lengths[number]
            steps: Sequence[tuple[int, int]] = ()
            if not self._sealed[number]:
                steps = self._sees[number]
            elif base >= 0:  # step over its fan
                tokens += self.tokens[number] - self.tokens[base] - self._length[number]
                steps, doors = ((base, self._length[number]),), self._doors[number]
            for older, length in steps:
                met[older] = met.get(older, 0) + doors
                if older not in pending:
                    heapq.heappush(heap, -older)
                pending[older] = max(length, pending.get(older, 0))
        *fan, base = lengths
        sealed = all(met[inside] == self._referrers[inside] for inside in fan)
        if sealed:
            for inside in fan:
                self._joined[inside] = len(self.tokens)
        self._close(base, lengths[base], tokens, met[base], sealed)
        last = next(number for number in reversed(views) if met[number] == 1)
        return View(last, lengths[last])
