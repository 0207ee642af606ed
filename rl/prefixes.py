"""Samples laid over each other where their contexts begin alike, so that the learner reads a prefix once for all of them.

The traces of a group share their prompt, and at a low entropy much of what follows it: of a step of the quickstart about
two thirds of all tokens have a context that another trace has, too. Nothing else changes: every sampled token keeps its own
entry, with its own advantage and weights, and the loss remains a sum over entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from apr.threads.layout import Block, Segment
from rl.samples import Sample

MISSING = -1
Context = tuple[int, ...]  # tokens: what these see, and they themselves, are all that the next token sees
Key = tuple[
    Context, int, int, int
]  # context, position, id, and how many tokens of its block came before with all three


def overlaid(batch: Sequence[Sample], most: int) -> list[Sample]:
    """The samples of a batch, those with common prefixes as one of at most `most` tokens. Longer ones stay as they are.

    Samples in the order of their tokens meet those with the longest common prefixes, so one pass finds them.

    Example: of the sequences `1 2 3 4` and `1 2 5` the second adds one token, which sees two of the first's:

        ids        1 2 3 4 5
        positions  0 1 2 3 2
        segments   (0, 4) seeing nothing; (4, 5) seeing two tokens of segment 0
    """
    result: list[Sample] = []
    overlay = _Overlay()
    for sample in sorted(batch, key=lambda sample: sample.block.ids):
        added = overlay.added(sample.block)
        if added == len(sample.block.ids) or len(overlay.ids) + added > most:
            result += overlay.samples()
            overlay = _Overlay()
        overlay.add(sample)
    return result + overlay.samples()


class _Overlay:
    """Tokens by context: tokens of different blocks are one if their contexts, positions and ids are equal. Those of one block
    never are: a parent that joins over two children who wrote the same attends to both."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._positions: list[int] = []
        self._segments: list[Segment] = []
        self._segment_of: list[int] = []  # of each token
        self._tokens: dict[Key, int] = {}
        self._samples: list[tuple[Sample, list[int]]] = []  # and for each of its tokens, the one here

    def added(self, block: Block) -> int:
        """How many tokens `block` would add."""
        return self._places(block, lambda segment, key: MISSING).count(MISSING)

    def add(self, sample: Sample) -> None:
        self._samples.append((sample, self._places(sample.block, self._append)))

    def _places(self, block: Block, new: Callable[[Segment, Key], int]) -> list[int]:
        """For each token of `block` the one here. `new` says what stands for one that is not."""
        places: list[int] = []
        contexts: list[Context] = []  # of its segments' first tokens
        met: Counter[tuple[Context, int, int]] = Counter()
        for segment in block.segments:
            context = _context(block, segment, places, contexts)
            contexts.append(context)
            for index in range(segment.start, segment.stop):
                told = (context, block.positions[index], block.ids[index])
                key = (*told, met[told])
                met[told] += 1
                place = self._tokens.get(key)
                if place is None:
                    place = new(segment, key)
                places.append(place)
                context = (place,)
        return places

    def _append(self, segment: Segment, key: Key) -> int:
        """A new token. It goes on with the last segment if it follows that one's last token, else it begins one."""
        context, position, token, _ = key
        place = self._tokens[key] = len(self.ids)
        if not (self._segments and context == (place - 1,) and self._positions[-1] + 1 == position):
            sees = tuple((self._segment_of[seen], seen + 1 - self._start(seen)) for seen in context)
            self._segments.append(Segment(segment.strand, place, place, sees))
        last = self._segments[-1]
        self._segments[-1] = Segment(last.strand, last.start, place + 1, last.sees)
        self.ids.append(token)
        self._positions.append(position)
        self._segment_of.append(len(self._segments) - 1)
        return place

    def _start(self, place: int) -> int:
        return self._segments[self._segment_of[place]].start

    def samples(self) -> list[Sample]:
        """One sample, whose strands are those of all that were added; none if nothing was."""
        if len(self._samples) < 2:
            return [sample for sample, _ in self._samples]
        made = Sample(
            Block(tuple(self.ids), tuple(self._positions), tuple(self._segments)), [], [], [], [], [], [], [], []
        )
        strands = 0
        for sample, places in self._samples:
            made.trained.extend(places[index] for index in sample.trained)
            made.before.extend(places[index] for index in sample.before)
            made.strands.extend(strands + number for number in sample.strands)
            strands += len(sample.block.segments)
            for name in ("logprobs", "advantages", "weights", "kl_weights", "lags"):
                getattr(made, name).extend(getattr(sample, name))
        return [made]


def _context(block: Block, segment: Segment, places: Sequence[int], contexts: Sequence[Context]) -> Context:
    """What the first token of a segment sees, by tokens of the overlay."""
    seen: dict[int, None] = {}  # in order, each once
    for number, length in segment.sees:
        if length:
            seen[places[block.segments[number].start + length - 1]] = None
        else:  # what that segment sees
            seen.update(dict.fromkeys(contexts[number]))
    return tuple(seen)
