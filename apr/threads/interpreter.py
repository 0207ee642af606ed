"""The interpreter: the threads of one trace, by the rules of their protocol.

    Interpreter.thread("r")       one coroutine per thread
      strand(...)                 what one strand samples, as whoever runs the trace gets it
      protocol.ended(strand)      Continue | Spawn | Await | Finish | Fail
      thread("r.0") ...           children; what they leave is taken in spawn order
      Branch.ends                 what the parent's next strand comes after

A thread ends when the children that it left running have ended too, however it ends. So a parent that waits for a child
waits for the child's last strand and for the descendants that outlast it, and `Strand.after` names them all.

A parent may go on without some children: with the first that returns a message, or when it ends. Time is counted in sampled
tokens on the longest chain (`span`), never by the clock: the others are recorded up to the span at which the parent goes on,
and are `cancelled`, whatever had been sampled of them by then (`apr.threads.branches`).

Two subclasses run traces: `apr.threads.session.Session` samples from an engine, children side by side;
`apr.scripts.demonstration` has each strand say what a script says, one after the other. So a demonstration cannot differ in
form from what the runtime makes of a model that has learned it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any

from apr.threads.branches import Branch, cancel
from apr.threads.limits import Allowance, Limits
from apr.threads.protocol import Await, Continue, Decision, Fail, Finish, Spawn, ThreadProtocol
from apr.threads.trace import ROOT, StopReason, Strand, StrandId, Thread


class Interpreter(ABC):
    """State shared by the threads of one trace: the strands that ended, and the sampled tokens on the longest chain to each."""

    def __init__(self, protocol: ThreadProtocol, limits: Limits) -> None:
        self.protocol = protocol
        self.limits = limits
        self.ended: dict[StrandId, Strand] = {}
        self.spans: dict[StrandId, int] = {}

    def span(self, after: Iterable[StrandId]) -> int:
        """Sampled tokens on the longest chain that ends with one of these strands."""
        return max((self.spans[before] for before in after), default=0)

    @abstractmethod
    async def strand(
        self, id: StrandId, plan: Continue, after: tuple[StrandId, ...], allowance: Allowance
    ) -> tuple[Strand, StopReason | None] | StopReason:
        """Sample one strand. Returns it and, if something cut it short, what; or why it could not start."""

    @abstractmethod
    def begin(self, thread: Coroutine[Any, Any, Branch]) -> Awaitable[Branch]:
        """Start a child thread."""

    @abstractmethod
    async def gather(
        self, children: Sequence[Awaitable[Branch]], watch: Callable[[Branch], None] | None = None
    ) -> Sequence[Branch]:
        """Wait until all of these have ended. `watch` is called with each as soon as it has."""

    @abstractmethod
    def hurry(self, thread: str, span: int) -> None:
        """Nobody wants more of a thread and those below it than what is sampled up to this span."""

    @abstractmethod
    async def drop(self, children: Iterable[Awaitable[Branch]]) -> None:
        """End children that nobody will gather, since something raised."""

    async def root(self, first: Continue) -> Branch:
        """Run the whole trace."""
        return await self.thread(ROOT, None, 0, first, (), Allowance.whole(self.limits))

    async def thread(
        self,
        id: str,
        parent: str | None,
        depth: int,
        first: Continue,
        after: tuple[StrandId, ...],
        allowance: Allowance,
    ) -> Branch:
        """Run one thread to its end, and with it all threads that it spawns. Its first strand comes `after` these."""
        own: list[StrandId] = []
        below = Branch(id, self.span(after), allowance)
        children: dict[int, Awaitable[Branch]] = {}  # those still open, by number
        spawned = 0
        decision: Decision = first
        try:
            while True:
                match decision:
                    case Continue():
                        result = await self.strand(StrandId(id, len(own)), decision, below.ends or after, allowance)
                        if isinstance(result, StopReason):
                            decision = Fail(result)
                            continue
                        strand, cut = result
                        self.ended[strand.id] = strand
                        self.spans[strand.id] = self.span(strand.after) + len(strand.sampled)
                        own.append(strand.id)
                        below.parts.append(strand)
                        below.ends = (strand.id,)
                        decision = Fail(cut) if cut else self.protocol.ended(strand, self.ended)
                    case Spawn(plans, then):
                        refusal = allowance.refuse(len(plans), depth, self.limits)
                        if refusal:
                            decision = Fail(refusal)
                            continue
                        shares = allowance.split(
                            len(plans),
                            goes_on=isinstance(then, Continue),
                            nest=self.protocol.nests and depth + 1 < self.limits.depth,
                        )
                        for share, plan in zip(shares, plans):
                            run = self.thread(f"{id}.{spawned}", id, depth + 1, plan, below.ends, share)
                            children[spawned] = self.begin(run)
                            spawned += 1
                        decision = then
                    case Await(numbers, race):
                        wanted = tuple(children) if numbers is None else numbers
                        ended = await self._take(below, children, wanted, race)
                        decision = self.protocol.joined(self.ended[own[-1]], ended, self.ended)
                    case Finish(message, leave):
                        await (self._leave(below, children) if leave else self._take(below, children, tuple(children)))
                        below.ended = Thread(id, parent, depth, tuple(own), decision.stop, message or ())
                        return below
                    case Fail(reason):
                        await self._take(below, children, tuple(children))
                        below.ended = Thread(id, parent, depth, tuple(own), reason)
                        return below
        finally:  # if anything raised, here or in a child, no thread outlives its parent
            if children:
                await self.drop(children.values())

    async def _take(
        self, below: Branch, children: dict[int, Awaitable[Branch]], numbers: Sequence[int], first: bool = False
    ) -> list[Thread]:
        """Wait for some children; take over their strands, their ends and what they left, in the order of `numbers`.

        `first`: until one of them returns a message, ties in that order; the others are cancelled, and nothing waits for them.
        """
        if not numbers:
            return []
        now = self.span(below.ends)
        found: dict[str, int] = {}  # by thread, the span at which those returned that did so

        def watch(child: Branch) -> None:
            if child.thread.message:
                found[child.id] = max(now, self.span(child.ends))
                for number in numbers:
                    self.hurry(f"{below.id}.{number}", min(found.values()))

        branches = await self.gather([children[number] for number in numbers], watch if first else None)
        waited = branches
        if found:
            winner = min((child for child in branches if child.id in found), key=lambda child: found[child.id])
            for child in branches:
                if child is not winner:
                    cancel(child, found[winner.id], self.ended, self.spans)
                    if child.thread.message:  # it came as soon, but is not the one that is gone on with
                        child.ended = replace(child.thread, stop=StopReason.CANCELLED, message=())
            waited = [winner]
        below.ends += tuple(strand for child in waited for strand in child.ends)
        return self._taken(below, children, numbers, branches)

    async def _leave(self, below: Branch, children: dict[int, Awaitable[Branch]]) -> None:
        """Cancel all children that are open."""
        now, numbers = self.span(below.ends), tuple(children)
        for number in numbers:
            self.hurry(f"{below.id}.{number}", now)
        branches = await self.gather(list(children.values()))
        for child in branches:
            cancel(child, now, self.ended, self.spans)
        self._taken(below, children, numbers, branches)

    def _taken(
        self, below: Branch, children: dict[int, Awaitable[Branch]], numbers: Sequence[int], branches: Sequence[Branch]
    ) -> list[Thread]:
        """Those children have ended: take over their strands and what they left."""
        for number, child in zip(numbers, branches, strict=True):
            del children[number]
            below.allowance.give_back(child.allowance)
        below.parts += branches
        return [child.thread for child in branches]
