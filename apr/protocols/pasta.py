"""PASTA (arXiv 2502.11517): a promise opens a thread whose length it reserves; the main thread goes on beside it.

    <promise> topic <tokens> 3 </promise>      opens a thread, and keeps 30 positions free for it
    <async> ... </async>                       what it says; it sees the main thread up to its promise
    <sync/>                                    the main thread waits for all that are open, and sees them from here on

`<async>` is forced. The number is the expected length in tens, both tags included. The root's answer is `<join> answer <eos>`.
Promised threads do not nest. The published tag is one, `<promise topic="..." tokens="30"/>`; here it is in pieces, which a
vocabulary of tokens can spell.

Positions: a promised thread starts where its promise ends; the main thread goes on after the positions that it reserved, and
keeps its own count at a sync. With a prompt of 8 tokens, a promise of 15, of thirty tokens:

    r#0     0 to 22      sees nothing
    r.0#0   23 to 48     sees r#0; 23 to 52 are its own
    r#1     53, ...      sees r#0
    after <sync/>        sees r and all that was promised since the last one

A thread that says more than was reserved overruns: its last positions are those of the main thread as well, and the clash
stands (`overruns` counts). What a sync waits for and did not end with `</async>` is not seen; a sync with nothing promised is
malformed.
"""

from collections.abc import Iterator, Mapping, Sequence

from apr.protocols.grammar import MALFORMED, Said, Tagged, returned, whole, words_of
from apr.scripts.script import Answer, Fork, Join, Pieces, Say, Script
from apr.threads.protocol import Await, Continue, Decision, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Strand, StrandId, Thread, Trace
from apr.tokens.control import PASTA
from apr.tokens.speller import Speller

TENS = 10  # promised lengths are in tens of tokens
MOST = 999  # tens


class Pasta(Tagged):
    """Stateless; served by an engine of views `dag`."""

    name = "pasta"
    shares = True
    nests = False
    purpose = (
        "It promises parts of what it writes, goes on while they are written beside it, and waits for them at a sync, as in\n"
        "PASTA ([arXiv 2502.11517](https://arxiv.org/abs/2502.11517))."
    )
    grammar = """The root samples its search, and promises parts of it:

```
<promise> TOPIC <tokens> N </promise>     opens a thread, for which 10 N positions are kept free
<async> ... </async>                      what it says; `<async>` is forced
<sync/>                                   wait for all that are open, and see them from here on
```

A promised thread sees the root up to its promise, and stands where it ends; the root goes on after the positions that are kept
free. It ends with `join`, its answer and `eos`. A server of ordinary causal requests cannot serve this; `engine.kind=shared` of
this project does."""

    def __init__(self, speller: Speller) -> None:
        super().__init__(speller)
        self.promise, self.tokens, self.promise_end, self.opened, self.ended_, self.sync = speller.vocabulary.tags(
            PASTA
        )
        self._stop_ids = (self.promise_end, self.ended_, self.sync, self.control.eos)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if strand.id.thread != ROOT:
            return Finish(None) if said[-1:] == (self.ended_,) and self.words.alone(said[:-1]) else MALFORMED
        if said[-1:] == (self.sync,):
            return Await() if self.words.alone(said[:-1]) else MALFORMED
        if said[-1:] != (self.promise_end,):
            return self.words.answered(said)
        tens = self.promised(said)
        if tens is None:
            return MALFORMED
        child = Continue((Injected(Origin.FORCED, (self.opened,)),), (whole(strand),), strand.end, self._stop_ids)
        return Spawn((child,), then=Continue((), (whole(strand),), strand.end + TENS * tens, self._stop_ids))

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        if not children:
            return MALFORMED
        # The root's own strand comes last: its sync is what the next token follows.
        sees = tuple(map(whole, (*returned(children, strands), last)))
        return Continue((), sees, last.end, self._stop_ids)

    def promised(self, said: Said) -> int | None:
        """The tens of tokens that the promise which ends `said` keeps free; None if it is malformed."""
        if said[-1:] != (self.promise_end,) or said.count(self.promise) != 1 or said.count(self.tokens) != 1:
            return None
        start, middle = said.index(self.promise), said.index(self.tokens)
        topic, number = said[start + 1 : middle], said[middle + 1 : -1]
        if not topic or not all(map(self.words.alone, (said[:start], topic, number))):
            return None
        text = "".join(self.speller.answer(number).split())
        if not (text.isascii() and text.isdecimal()) or len(text) > len(str(MOST)) or not int(text):
            return None
        return int(text)

    def _strands(self, script: Script) -> Iterator[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids: one per promise, and at the sync those that were promised. A
        branch's result is not said: the root sees the branch."""
        out: list[str | int] = []
        open_: list[list[str]] = []
        answer: Pieces = ()
        for piece in script:
            match piece:
                case Say(pieces):
                    out += pieces
                case Answer(pieces):
                    answer = pieces
                case Fork(branches):
                    for branch in branches:
                        words = words_of(branch, self.name)
                        tens = -(-(len(self.speller.ids(words)) + 2) // TENS)  # with its two tags
                        topic = branch.title or branch.message
                        yield [*out, self.promise, *topic, self.tokens, str(tens), self.promise_end]
                        open_.append(words)
                        out = []
                case Join(some):
                    if some is not None or not open_:
                        raise ValueError(
                            "pasta waits for all that is promised, at a sync: join all branches that are open"
                        )
                    yield [*out, self.sync]
                    for words in open_:
                        yield [*words, self.ended_]
                    out, open_ = [], []
        yield [*out, self.control.join, *answer, self.control.eos]
        for words in open_:  # never joined: they end after the root
            yield [*words, self.ended_]


def overruns(trace: Trace, protocol: Pasta) -> int:
    """How many promised threads said more than was kept free for them."""
    strands = trace.by_id()
    found = 0
    for thread in trace.threads[1:]:
        if thread.strands:
            first = strands[thread.strands[0]]
            tens = protocol.promised(strands[first.sees[0].strand].sampled)
            found += tens is not None and len(first.ids) > TENS * tens
    return found
