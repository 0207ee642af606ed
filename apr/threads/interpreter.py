"""The interpreter: the threads of one trace, by the rules of their protocol.

    Interpreter.thread("r")       one coroutine per thread
      strand(...)                 what one strand samples, as whoever runs the trace gets it
      protocol.ended(strand)      Continue | Spawn | Await | Finish | Fail
      thread("r.0") ...           children; what they leave is taken in spawn order
      Branch.ends                 what the parent's next strand comes after

A thread ends when the children that it left running have ended too, however it ends. So a parent that waits for a child
waits for the child's last strand and for the descendants that outlast it, and `Strand.after` names them all.

Two subclasses run traces: `apr.threads.session.Session` samples from an engine, children side by side;
`apr.scripts.demonstration` has each strand say what a script says, one after the other. So a demonstration cannot differ in
form from what the runtime makes of a model that has learned it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from apr.threads.limits import Allowance, Limits
from apr.threads.protocol import Await, Continue, Decision, Fail, Finish, Spawn, ThreadProtocol
from apr.threads.trace import ROOT, StopReason, Strand, StrandId, Thread


@dataclass
class Branch:
    """A thread and the branches below it, and what it left of its allowance.

    `parts`: its own strands and its children's branches, in the order in which it started the ones and gathered the others.
    `ends`: the strands after which the branch has ended. They are the thread's own last strand, and the ends of those
    children that no strand of its own came after. A thread that never started has none.
    """

    parts: list[Strand | Branch]
    allowance: Allowance
    ends: tuple[StrandId, ...] = ()
    ended: Thread | None = None

    @property
    def thread(self) -> Thread:
        assert self.ended is not None, "its thread is still running"
        return self.ended

    def flat(self) -> tuple[tuple[Thread, ...], tuple[Strand, ...]]:
        """All threads and all strands, depth first in spawn order. No recursion: branches nest deeper than Python calls."""
        threads = [self.thread]
        strands: list[Strand] = []
        stack = [iter(self.parts)]
        while stack:
            match next(stack[-1], None):
                case None:
                    stack.pop()
                case Branch() as branch:
                    threads.append(branch.thread)
                    stack.append(iter(branch.parts))
                case strand:
                    strands.append(strand)
        return tuple(threads), tuple(strands)


class Interpreter(ABC):
    """State shared by the threads of one trace: the strands that ended."""

    def __init__(self, protocol: ThreadProtocol, limits: Limits) -> None:
        self.protocol = protocol
        self.limits = limits
        self.ended: dict[StrandId, Strand] = {}

    @abstractmethod
    async def strand(
        self, id: StrandId, plan: Continue, after: tuple[StrandId, ...], allowance: Allowance
    ) -> tuple[Strand, StopReason | None] | StopReason:
        """Sample one strand. Returns it and, if something cut it short, what; or why it could not start."""

    @abstractmethod
    def begin(self, thread: Coroutine[Any, Any, Branch]) -> Awaitable[Branch]:
        """Start a child thread."""

    @abstractmethod
    async def gather(self, children: Sequence[Awaitable[Branch]]) -> Sequence[Branch]:
        """Wait until all of these have ended."""

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
        below = Branch([], allowance)
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
                        own.append(strand.id)
                        below.parts.append(strand)
                        below.ends = (strand.id,)
                        decision = Fail(cut) if cut else self.protocol.ended(strand, self.ended)
                    case Spawn(plans, then):
                        refusal = allowance.refuse(len(plans), depth, self.limits)
                        if refusal:
                            decision = Fail(refusal)
                            continue
                        shares = allowance.split(len(plans), goes_on=isinstance(then, Continue))
                        for share, plan in zip(shares, plans):
                            run = self.thread(f"{id}.{spawned}", id, depth + 1, plan, below.ends, share)
                            children[spawned] = self.begin(run)
                            spawned += 1
                        decision = then
                    case Await(numbers):
                        ended = await self._take(children, below, tuple(children) if numbers is None else numbers)
                        decision = self.protocol.joined(self.ended[own[-1]], ended, self.ended)
                    case Finish(message):
                        await self._take(children, below, tuple(children))
                        below.ended = Thread(id, parent, depth, tuple(own), decision.stop, message or ())
                        return below
                    case Fail(reason):
                        await self._take(children, below, tuple(children))
                        below.ended = Thread(id, parent, depth, tuple(own), reason)
                        return below
        finally:  # if anything raised, here or in a child, no thread outlives its parent
            if children:
                await self.drop(children.values())

    async def _take(
        self, children: dict[int, Awaitable[Branch]], below: Branch, numbers: Sequence[int]
    ) -> list[Thread]:
        """Wait for some children; take over their strands, their ends and what they left, in the order of `numbers`."""
        if not numbers:
            return []
        branches = await self.gather([children[number] for number in numbers])
        for number in numbers:
            del children[number]
        below.parts += branches
        for branch in branches:
            below.allowance.give_back(branch.allowance)
        below.ends += tuple(strand for branch in branches for strand in branch.ends)
        return [branch.thread for branch in branches]
