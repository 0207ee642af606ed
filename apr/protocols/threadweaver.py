"""ThreadWeaver: a plan as in Multiverse, threads beside each other, and their text sent again to the parent, which goes on.

    <Parallel> <Outlines> <Outline> 1 : title </Outline> <Outline> 2 : title </Outline> </Outlines>     a thread per outline
    <Thread> 1 : ... </Thread>                  each thread, which sees all before it and no other thread
    <Thread> 1 : ... </Thread> <Thread> 2 : ... </Thread> </Parallel> ...      the parent goes on after copies of all threads

`<Thread> 1 :` and `</Parallel>` are forced. The root's answer is `<join> answer <eos>`. Threads do not nest. Every strand is a
plain causal sequence with serial positions, so any engine serves it: what a join costs is to compute the copies again. A thread
that does not end with `</Thread>` is malformed, and is not copied.
"""

from collections.abc import Iterator, Mapping, Sequence

from apr.protocols.grammar import MALFORMED, Block, Tagged, blocks, label, outlined, outlines, returned, whole, words_of
from apr.scripts.script import Answer, Pieces, Say, Script
from apr.threads.protocol import Await, Continue, Decision, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Strand, StrandId, Thread
from apr.tokens.control import THREADWEAVER
from apr.tokens.speller import Speller

PLAN = ("<Parallel>", "</Parallel>", "<Outline>", "</Outline>")  # as Multiverse has them


class ThreadWeaver(Tagged):
    """Stateless."""

    name = "threadweaver"
    nests = False
    shares = False
    purpose = (
        "It plans threads, writes them beside each other and goes on after copies of all of them, as in ThreadWeaver."
    )
    grammar = """The root samples its search, and opens threads by a plan:

```
<Parallel> <Outlines> (<Outline> N : TITLE </Outline>)+ </Outlines>     a thread for each outline
<Thread> N : ... </Thread>                                              each thread; `<Thread> N :` is forced
(<Thread> N : ... </Thread>)+ </Parallel> ...                           the root goes on; all before `...` is sent to it
```

A thread's prompt is all that the root saw and wrote, then `<Thread> N :`. The root's next prompt is its own, then the threads
as they were written, in order, then `</Parallel>`. It ends with `join`, its answer and `eos`."""

    def __init__(self, speller: Speller) -> None:
        super().__init__(speller)
        self.plan, self.plan_end, self.thread, self.thread_end = speller.vocabulary.tags(THREADWEAVER)
        self.parallel, self.parallel_end, self.outline, self.outline_end = speller.vocabulary.tags(PLAN)
        self._stop_ids = (self.plan_end, self.thread_end, self.control.eos)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if strand.id.thread != ROOT:
            return Finish(None) if said[-1:] == (self.thread_end,) and self.words.alone(said[:-1]) else MALFORMED
        if said[-1:] != (self.plan_end,):
            return self.words.answered(said)
        tags = (self.parallel, self.plan, self.outline, self.outline_end)
        count = outlines(said, tags, self.speller, self.words)
        return Spawn(tuple(self._child(strand, n) for n in range(1, count + 1)), then=Await()) if count else MALFORMED

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        copies = tuple(Injected(Origin.COPY, strand.ids) for strand in returned(children, strands))
        return Continue(
            (*copies, Injected(Origin.FORCED, (self.parallel_end,))), (whole(last),), last.end, self._stop_ids
        )

    def _strands(self, script: Script) -> Iterator[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids. A thread's result is not said: its parent is sent it all."""
        out: list[str | int] = []
        answer: Pieces = ()
        for piece in blocks(script, self.name):
            match piece:
                case Say(pieces):
                    out += pieces
                case Answer(pieces):
                    answer = pieces
                case Block(branches):
                    plan = outlined(branches, self.outline, self.outline_end)
                    yield [*out, self.parallel, self.plan, *plan, self.plan_end]
                    for branch in branches:
                        yield [*words_of(branch, self.name), self.thread_end]
                    out = []
        yield [*out, self.control.join, *answer, self.control.eos]

    def _child(self, parent: Strand, number: int) -> Continue:
        forced = Injected(Origin.FORCED, (self.thread, *self.speller.ids(label(number))))
        return Continue((forced,), (whole(parent),), parent.end, self._stop_ids)
