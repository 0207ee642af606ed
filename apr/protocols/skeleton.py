"""Skeleton-of-Thought (arXiv 2307.15337), trained: the root writes points, then a child writes each, from the prompt and all.

    1 . point 1  2 . point 2  <eos>                     the root; it ends with its skeleton
    prompt, skeleton ; 1 . point 1  ... <join> message <eos>      a child

All before `...` is sent to a child: the prompt, copies of skeleton and point, and `; 1 .`, which is forced. Nothing is joined,
and nobody sees all parts. The host makes the answer: what the root answers itself, as `<join> answer <eos>`, or else the
message of the first child, in spawn order, that has one. A skeleton without a point is malformed. Any engine serves it.
"""

from collections.abc import Iterator, Mapping, Sequence

from apr.protocols.grammar import MALFORMED, Said, Tagged, first_message, words_of
from apr.scripts.script import Answer, Fork, Join, Pieces, Say, Script
from apr.threads.protocol import Await, Continue, Decision, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Strand, StrandId, Thread
from apr.tokens.speller import Speller

MOST_POINTS = 99


class Skeleton(Tagged):
    """Stateless."""

    name = "skeleton"
    nests = False
    shares = False
    purpose = (
        "It writes a skeleton of points, and each point by itself, as in\n"
        "Skeleton-of-Thought ([arXiv 2307.15337](https://arxiv.org/abs/2307.15337))."
    )
    grammar = """The root writes a skeleton and ends; each point is written by itself:

```
(N . POINT)+ eos                                   the skeleton
PROMPT SKELETON ; N . POINT ... join MESSAGE eos   a child; all before `...` is sent to it
```

Nobody sees what the children wrote: the answer is the root's own (`join`, answer, `eos`), or else the message of the first
child that has one."""

    def __init__(self, speller: Speller) -> None:
        super().__init__(speller)
        self._stop_ids = (self.control.eos,)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if strand.id.thread != ROOT or self.control.join in said:
            return self.words.answered(said)
        points = self._points(said[:-1]) if said[-1:] == (self.control.eos,) else []
        return Spawn(tuple(self._child(strand, *point) for point in points), then=Await()) if points else MALFORMED

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        return Finish(None)

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return first_message(threads)

    def _strands(self, script: Script) -> Iterator[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids. The skeleton is the first fork; what precedes it is left out,
        since a skeleton holds points alone."""
        for number, piece in enumerate(script):
            match piece:
                case Fork(branches):
                    if len(branches) > MOST_POINTS:
                        raise ValueError(f"a skeleton has at most {MOST_POINTS} points")
                    out: list[str | int] = []
                    for point, branch in enumerate(branches, 1):
                        out += (*_mark(point), *(branch.title or branch.message))
                    yield [*out, self.control.eos]
                    for branch in branches:
                        yield [*words_of(branch, self.name), self.control.join, *branch.result, self.control.eos]
                    return
                case Answer(pieces):
                    said = [word for one in script[:number] if isinstance(one, Say) for word in one.pieces]
                    yield [*said, self.control.join, *pieces, self.control.eos]
                case Say() | Join():
                    pass

    def _points(self, said: Said) -> list[tuple[int, Said]]:
        """The points of a skeleton, by number; none if it is malformed."""
        if not self.words.alone(said):
            return []
        starts: list[tuple[int, int]] = []  # of each point: where its mark begins, and ends
        for number in range(1, MOST_POINTS + 2):
            mark = self.speller.ids(_mark(number))
            begin = starts[-1][1] + 1 if starts else 0
            place = next((i for i in range(begin, len(said)) if said[i : i + len(mark)] == mark), None)
            if place is None or number > MOST_POINTS:
                break
            starts.append((place, place + len(mark)))
        if not starts or starts[0][0]:
            return []
        ends = [begin for begin, _ in starts[1:]] + [len(said)]
        points = [(number, said[start:end]) for number, ((_, start), end) in enumerate(zip(starts, ends), 1)]
        return points if all(point for _, point in points) else []

    def _child(self, root: Strand, number: int, point: Said) -> Continue:
        prompt = next(run for run in root.injected if run.origin is Origin.PROMPT)
        forced = self.speller.ids((";", *_mark(number)))
        inject = (
            prompt,
            Injected(Origin.COPY, root.sampled[:-1]),
            Injected(Origin.FORCED, forced),
            Injected(Origin.COPY, point),
        )
        return Continue(inject, (), 0, self._stop_ids)


def _mark(number: int) -> Pieces:
    return (str(number), ".")
