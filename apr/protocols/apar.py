"""APAR (arXiv 2401.06761): the thread forks where a detail is wanted and goes on; nothing is joined.

    head 1 [Fork] head 2 [Fork] ... <eos>      the root; each fork opens a child, and the root goes on at once
    [Child] ... <join> message <eos>           a child: it sees the root up to its fork

`[Child]` is forced. The parent never sees its children. The host makes the answer: what the root answers itself, as
`<join> answer <eos>`, or else the message of the first child, in spawn order, that has one; a root that did not end as it
should has no answer. Children do not fork here. As in the released engine a fork may neither open a strand nor follow another,
and nobody writes `[Child]`: such text is malformed. Positions are serial, so any engine serves it.
"""

from collections.abc import Iterator, Mapping, Sequence

from apr.protocols.grammar import MALFORMED, Tagged, first_message, whole, words_of
from apr.scripts.script import Answer, Fork, Join, Pieces, Say, Script
from apr.threads.protocol import Continue, Decision, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Strand, StrandId, Thread
from apr.tokens.control import APAR
from apr.tokens.speller import Speller


class Apar(Tagged):
    """Stateless."""

    name = "apar"
    nests = False
    shares = False
    purpose = (
        "It forks where a detail is wanted, and goes on while that is written, as in\n"
        "APAR ([arXiv 2401.06761](https://arxiv.org/abs/2401.06761))."
    )
    grammar = """The root samples its search, and forks:

```
HEAD [Fork]                         opens a child, and the root goes on at once
[Child] ... join MESSAGE eos        a child; `[Child]` is forced
eos                                 the root ends
```

A child's prompt is all that the root saw and wrote up to its fork, then `[Child]`. Nobody sees what a child wrote: the answer
is the root's own (`join`, answer, `eos`), or else the message of the first child that has one."""

    def __init__(self, speller: Speller) -> None:
        super().__init__(speller)
        self.fork, self.child = speller.vocabulary.tags(APAR)
        self._stop_ids = (self.fork, self.control.eos)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if strand.id.thread != ROOT:
            return self.words.answered(said)
        if said[-1:] == (self.fork,):
            if len(said) < 2 or not self.words.alone(said[:-1]):
                return MALFORMED
            child = Continue((Injected(Origin.FORCED, (self.child,)),), (whole(strand),), strand.end, self._stop_ids)
            return Spawn((child,), then=Continue((), (whole(strand),), strand.end, self._stop_ids))
        if said[-1:] == (self.control.eos,) and self.words.alone(said[:-1]):
            return Finish(None)
        return self.words.answered(said)

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        raise AssertionError("nothing is joined")

    def answer(self, threads: Sequence[Thread]) -> tuple[int, ...] | None:
        return first_message(threads)

    def _strands(self, script: Script) -> Iterator[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids. The root ends where it would have to know what its children
        found: at the first join."""
        out: list[str | int] = []
        children: list[list[str | int]] = []
        answer: Pieces | None = None
        for piece in script:
            match piece:
                case Say(pieces):
                    out += pieces
                case Fork(branches):
                    for branch in branches:
                        yield [*out, *(branch.title or branch.message), self.fork]
                        out = []
                        children.append([*words_of(branch, self.name), self.control.join, *branch.result])
                case Join():
                    break
                case Answer(pieces):
                    answer = pieces
        yield [*out, self.control.eos] if answer is None else [*out, self.control.join, *answer, self.control.eos]
        for child in children:
            yield [*child, self.control.eos]
