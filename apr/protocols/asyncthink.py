"""AsyncThink (arXiv 2510.26658): an organizer forks workers, goes on beside them, and joins them one by one.

    <FORK> 1 sub-query </FORK>       opens worker 1, and the organizer goes on at once
    <QUERY> sub-query ... <RETURN> result <eos>       a worker: a fresh context, the sub-query and what it makes of it
    <JOIN> 1                         the organizer waits for worker 1, and for it alone
    <RET> result </RET>              then goes on after its result
    <ANSWER> answer <eos>            ends; workers that are still open are cancelled

`<QUERY>` and the sub-query, `<RET>`, the result and `</RET>` are injected. Workers have numbers, in any order, each once, as
far as the vocabulary has a token for every number from 1 (digits: nine workers); they do not fork. A worker that fails returns
the empty result. Malformed: a number used twice, a join of a worker that is not open, no answer. `limits.width` is the pool.

A strand ends at one token, and no token ends `<JOIN> 1` alone: numbers are words elsewhere. So the join is a strand that ends
with `<JOIN>`, and the number is the next, of one token. Positions are serial, so any engine serves it.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from apr.errors import ConfigError
from apr.protocols.grammar import MALFORMED, Tagged, whole, words_of
from apr.scripts.script import Answer, Fork, Join, Say, Script
from apr.threads.protocol import Await, Continue, Decision, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Strand, StrandId, Thread
from apr.tokens.control import ASYNCTHINK
from apr.tokens.speller import Speller

LEAST, MOST = 9, 99  # numbers that a vocabulary must have tokens for, and that are used


class AsyncThink(Tagged):
    """Stateless."""

    name = "asyncthink"
    nests = False
    shares = False
    purpose = (
        "It forks workers, goes on beside them and waits for the results that it needs, as in\n"
        "AsyncThink ([arXiv 2510.26658](https://arxiv.org/abs/2510.26658))."
    )
    grammar = """The organizer samples its search, and

```
<FORK> N SUB-QUERY </FORK>          opens worker N (each number once), and the organizer goes on at once
<JOIN> N                            waits for worker N, and for it alone
<ANSWER> ANSWER eos                 ends; workers that are still open are cancelled
```

A worker's prompt is `<QUERY>` and its sub-query, nothing else; it ends with `<RETURN>`, its result, which may be empty, and
`eos`. After a join the organizer's next prompt is its own, then `<RET>`, the result and `</RET>`. `N` after `<JOIN>` is asked
for by a request of its own, of one token."""

    def __init__(self, speller: Speller) -> None:
        super().__init__(speller)
        self.fork, self.fork_end, self.join, self.query, self.return_, self.ret, self.ret_end, self.answer_ = (
            speller.vocabulary.tags(ASYNCTHINK)
        )
        one_token = itertools.takewhile(
            lambda ids: len(ids) == 1, (speller.ids((str(number),)) for number in range(1, MOST + 1))
        )
        self.numbers = tuple(token for (token,) in one_token)  # the token of worker 1 first
        if len(self.numbers) < LEAST:
            raise ConfigError(
                f"protocol asyncthink numbers workers by one token each, and here {len(self.numbers) + 1} takes several: "
                "choose another protocol"
            )
        self._stop_ids = (self.fork_end, self.join, self.control.eos)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if strand.id.thread != ROOT:
            result = self.words.after(self.return_, said)
            return MALFORMED if result is None else Finish(result)
        if said[-1:] == (self.fork_end,):
            return self._forked(strand, strands)
        if said[-1:] == (self.join,):
            number = Continue((), (whole(strand),), strand.end, self.numbers, max_tokens=1)
            return number if self.words.alone(said[:-1]) else MALFORMED
        if self._asked(strand, strands):
            forked, joined = self._workers(strand, strands)
            return Await((forked.index(said[0]),)) if said[0] in forked and said[0] not in joined else MALFORMED
        answer = self.words.after(self.answer_, said)
        return MALFORMED if answer is None else Finish(answer, cancel=True)

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        [worker] = children
        message = (Injected(Origin.MESSAGE, worker.message),) if worker.message else ()
        inject = (Injected(Origin.FORCED, (self.ret,)), *message, Injected(Origin.FORCED, (self.ret_end,)))
        return Continue(inject, (whole(last),), last.end, self._stop_ids)

    def _strands(self, script: Script) -> Iterable[Sequence[int]]:
        """The ids of each strand: where a cancelled one ends is counted in them.

        A join of all waits for one worker after the other, and for no more once one has a result.
        """
        strands: list[tuple[int, ...]] = []
        out: list[str | int] = []
        # Open workers by number: their strands, whether they have a result, the span at which they start.
        open_: dict[int, tuple[tuple[int, ...], bool, int]] = {}
        now = opened = 0  # the organizer's span; workers so far

        def say(*pieces: str | int) -> None:
            nonlocal now
            strands.append(self.speller.ids([*out, *pieces]))
            now += len(strands[-1])
            out.clear()

        for piece in script:
            match piece:
                case Say(pieces):
                    out += pieces
                case Fork(branches):
                    for branch in branches:
                        opened += 1
                        if opened > len(self.numbers):
                            raise ValueError(f"asyncthink opens no more than {len(self.numbers)} workers here")
                        say(self.fork, str(opened), *branch.message, self.fork_end)
                        worker = self.speller.ids(
                            (*words_of(branch, self.name), self.return_, *branch.result, self.control.eos)
                        )
                        open_[opened] = worker, bool(branch.result), now
                case Join(some):
                    for number in list(open_) if some is None else [number + 1 for number in some]:
                        say(self.join)
                        say(str(number))
                        worker, has_result, started = open_.pop(number)
                        strands.append(worker)
                        now = max(now, started + len(worker))
                        if some is None and has_result:
                            break
                case Answer(pieces):
                    say(self.answer_, *pieces, self.control.eos)
        return strands + [worker[: now - started] for worker, _, started in open_.values()]

    def _forked(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if said.count(self.fork) != 1:
            return MALFORMED
        at = said.index(self.fork)
        number, query = said[at + 1], said[at + 2 : -1]
        if not query or not self.words.alone(said[:at]) or not self.words.alone(said[at + 1 : -1]):
            return MALFORMED
        if number not in self.numbers or number in self._workers(strand, strands)[0]:
            return MALFORMED
        told = (Injected(Origin.FORCED, (self.query,)), Injected(Origin.MESSAGE, query))
        worker = Continue(told, (), 0, self._stop_ids)
        return Spawn((worker,), then=Continue((), (whole(strand),), strand.end, self._stop_ids))

    def _asked(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> bool:
        """Whether the strand is the number after a `<JOIN>`."""
        before = strands.get(StrandId(ROOT, strand.id.number - 1))
        return before is not None and before.sampled[-1:] == (self.join,)

    def _workers(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> tuple[list[int], set[int]]:
        """The number tokens of the workers that the organizer opened before `strand`, in order, and of those that it joined."""
        forked: list[int] = []
        joined: set[int] = set()
        for number in range(strand.id.number):
            before = strands[StrandId(ROOT, number)]
            if before.sampled[-1:] == (self.fork_end,):
                forked.append(before.sampled[before.sampled.index(self.fork) + 1])
            elif self._asked(before, strands):
                joined.add(before.sampled[0])
        return forked, joined
