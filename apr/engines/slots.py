"""Which slots hold what: the segments of traces under way, and prompts that several of them share.

A *slot* is the place of one token's keys and values, in all layers; a *segment* holds the slots of one strand, after those that
it sees. A trace's segments go together: when it ends, or when another needs the room. Whatever was dropped can be computed
again from a request alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apr.engines.attention import Reads
from apr.threads.layout import Block
from apr.threads.trace import StrandId, StrandKey

Slots = npt.NDArray[np.int32]


class TraceId(NamedTuple):
    step: int
    problem: str
    sample: int

    @classmethod
    def of(cls, key: StrandKey) -> TraceId:
        return cls(key.step, key.problem, key.sample)


@dataclass(eq=False)
class Prompt:
    """Slots of the first tokens of a context, which all strands that open with these tokens read."""

    ids: tuple[int, ...]
    slots: Slots
    users: int = 0


@dataclass(eq=False)
class Segment:
    """`slots`: those that its strand sees, `seen` of them, then those of its own tokens, `fed` of them. The first `shared`
    of its own tokens are a prompt's."""

    slots: Slots
    seen: int
    ids: list[int] = field(default_factory=list)  # of its own tokens
    prompt: Prompt | None = None

    @property
    def fed(self) -> int:
        return len(self.ids)

    @property
    def shared(self) -> int:
        return 0 if self.prompt is None else len(self.prompt.ids)

    @property
    def length(self) -> int:
        """Slots that its next token reads, that one's own not counted."""
        return self.seen + self.fed

    def own(self, count: int) -> Slots:
        """The slots of its first `count` tokens."""
        return self.slots[self.seen : self.seen + count]

    def append(self, slots: Slots, ids: Sequence[int]) -> None:
        if (end := self.length + len(slots)) > len(self.slots):
            self.slots = np.concatenate([self.slots, np.empty(max(64, end), np.int32)])
        self.slots[self.length : end] = slots
        self.ids.extend(ids)


def _agree(some: Sequence[int], others: Sequence[int]) -> bool:
    """Whether one begins with the other."""
    both = min(len(some), len(others))
    return tuple(some[:both]) == tuple(others[:both])


@dataclass
class Feed:
    """Tokens of a segment whose keys and values are lacking: `ids`, of which the first is its token `index`, at `position`.
    `number`: of the segment in the block of the request."""

    number: int
    index: int
    ids: tuple[int, ...]
    position: int


@dataclass
class Held:
    """A trace's segments. `age`: smaller for older traces; `flights`: requests under way; `ended`: it goes with the last."""

    age: int
    segments: dict[StrandId, Segment] = field(default_factory=dict)
    flights: int = 0
    ended: bool = False


class Residents:
    """All segments that are held, in `capacity` slots. `traces`: the oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.traces: OrderedDict[TraceId, Held] = OrderedDict()
        self._entered = 0
        self._free = list(range(capacity - 1, -1, -1))
        self._prompts: dict[tuple[int, ...], Prompt] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def enter(self, trace: TraceId) -> Held:
        """A trace of which one more request is under way."""
        if trace not in self.traces:
            self._entered += 1
            self.traces[trace] = Held(self._entered)
        held = self.traces[trace]
        held.flights += 1
        held.ended = False
        return held

    def left(self, trace: TraceId) -> None:
        """One request fewer of the trace is under way."""
        self.traces[trace].flights -= 1
        if self.traces[trace].ended:
            self.end(trace)

    def end(self, trace: TraceId) -> None:
        """The trace has ended: nothing of it is held any more, once its last request has gone."""
        if (held := self.traces.get(trace)) is None:
            return
        held.ended = True
        if not held.flights:
            self.drop(trace)
            del self.traces[trace]

    def agrees(self, trace: TraceId, block: Block) -> bool:
        """Whether what is held of a trace is what a new request says. A strand may be asked for again, and then say other words
        than before it was lost."""
        held = self.traces[trace].segments
        *seen, own = block.segments
        return own.strand not in held and all(
            resident is None or _agree(resident.ids, block.ids[part.start : part.stop])
            for part in seen
            for resident in (held.get(part.strand),)
        )

    def lacking(self, trace: TraceId, block: Block) -> list[Feed]:
        """What must be fed before the strand of a request can be sampled: of segments that it sees, and of its own."""
        held = self.traces[trace].segments
        last = len(block.segments) - 1
        feeds = []
        for number, segment in enumerate(block.segments):
            resident = held.get(segment.strand)
            fed = 0 if resident is None else resident.fed
            if resident is None and number == last == 0:
                fed = len(block.ids) - 1 if self._prompt(block) else 0
            if (start := segment.start + fed) < segment.stop:
                feeds.append(Feed(number, fed, block.ids[start : segment.stop], block.positions[start]))
        return feeds

    def opened(self, trace: TraceId, block: Block) -> list[Segment]:
        """The segments of `block`, each with a slot for each of its tokens there. What `lacking` named before is to be fed."""
        held = self.traces[trace].segments
        slots = np.empty(len(block.ids), np.int32)
        found = []
        for number, part in enumerate(block.segments):
            segment = held.get(part.strand)
            if segment is None:
                ranges = block.seen(number)
                seen = np.concatenate([slots[start:stop] for start, stop in ranges]) if ranges else slots[:0]
                segment = held[part.strand] = Segment(np.array(seen), len(seen))
                if number == len(block.segments) - 1 == 0:
                    self._share(segment, block)
            count = min(segment.fed, part.stop - part.start)
            slots[part.start : part.start + count] = segment.own(count)
            self._take(segment, block.ids[part.start + count : part.stop])
            slots[part.start : part.stop] = segment.own(part.stop - part.start)
            found.append(segment)
        return found

    def grown(self, segment: Segment, token: int) -> None:
        """A slot for one more token of it."""
        self._take(segment, (token,))

    def drop(self, trace: TraceId) -> None:
        """Free what is held of a trace."""
        for segment in self.traces[trace].segments.values():
            self._free.extend(segment.own(segment.fed)[segment.shared :].tolist())
            if (prompt := segment.prompt) is not None:
                prompt.users -= 1
                if not prompt.users:
                    self._free.extend(prompt.slots.tolist())
                    del self._prompts[prompt.ids]
        self.traces[trace].segments.clear()

    def youngest_first(self) -> Iterator[TraceId]:
        """Traces of which something is held."""
        return (trace for trace in reversed(self.traces) if self.traces[trace].segments)

    def _take(self, segment: Segment, ids: Sequence[int]) -> None:
        if ids:
            segment.append(np.array([self._free.pop() for _ in ids], np.int32), ids)

    def _prompt(self, block: Block) -> Prompt | None:
        return self._prompts.get(block.ids[:-1])

    def _share(self, segment: Segment, block: Block) -> None:
        """Let the one strand of a block read the prompt that others opened with, or be the first to open with it. The last
        token is its own: what it predicts is asked anew."""
        ids = block.ids[:-1]
        if not ids:
            return
        prompt = self._prompts.get(ids)
        if prompt is None:
            slots = np.array([self._free.pop() for _ in ids], np.int32)
            prompt = self._prompts[ids] = Prompt(ids, slots)
        prompt.users += 1
        segment.prompt = prompt
        segment.append(prompt.slots, ids)


class Rows:
    """The tokens of a step, each with its slot and what it reads."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.indices: list[int] = []
        self.wanted: list[int] = []  # rows whose logits are, in the order in which they were asked for
        self._places: dict[tuple[Segment, int], int] = {}

    def add(self, segment: Segment, index: int, ids: Sequence[int], position: int) -> None:
        """Tokens of a segment: the first is its own token number `index`."""
        for number in range(len(ids)):
            self._places[segment, index + number] = len(self.ids) + number
        self.ids.extend(ids)
        self.positions.extend(range(position, position + len(ids)))
        self.segments.extend([segment] * len(ids))
        self.indices.extend(range(index, index + len(ids)))

    def has(self, segment: Segment, index: int) -> bool:
        return (segment, index) in self._places

    def want(self, segment: Segment, index: int) -> None:
        """Ask for what follows a token."""
        self.wanted.append(self._places[segment, index])

    def reads(self, start: int, stop: int) -> Reads:
        """What rows `start` to `stop` write and read."""
        segments = self.segments[start:stop]
        distinct = list(dict.fromkeys(segments))
        lists = [segment.slots[: segment.length] for segment in distinct]
        begins = dict(zip(distinct, np.cumsum([0, *map(len, lists)]).tolist()))
        starts = np.array([begins[segment] for segment in segments], np.int64)
        ends = np.array([segment.seen for segment in segments], np.int64) + np.array(self.indices[start:stop], np.int64)
        flat = np.concatenate(lists)
        return Reads(flat[starts + ends].astype(np.int64), flat, starts, ends + 1)
