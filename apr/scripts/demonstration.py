"""Demonstrations from what their strands sample.

The interpreter of the runtime lays the strands out by the protocol's rules, so a demonstration cannot differ in form from what
the runtime will make of a model that has learned it. It also means that a demonstration is known by its sampled tokens
alone: that is what data sets store.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any

from apr.threads.branches import Branch
from apr.threads.costs import costs
from apr.threads.interpreter import Interpreter
from apr.threads.limits import Allowance, Limits
from apr.threads.protocol import Continue, ThreadProtocol
from apr.threads.trace import WHOLE, EngineStop, Outcome, StopReason, Strand, StrandId, Trace

FREE = Limits(context=sys.maxsize, threads=None, depth=sys.maxsize)


def demonstration(
    prompt: Sequence[int], sampled: Iterable[tuple[int, ...]], protocol: ThreadProtocol, problem: dict[str, Any],
    solved: bool, read: Callable[[tuple[int, ...]], str],
) -> Trace:  # fmt: skip
    """The trace whose strands sampled `sampled`, in the order of `Trace.strands`; `read` gives the answer in a message. Raises
    `ValueError` if the protocol lays them out otherwise."""
    given = _Given(protocol, sampled)
    threads, strands = _ended(given.root(protocol.start(prompt))).flat()
    if next(given.sampled, None) is not None:
        raise ValueError(f"protocol {protocol.name} ends before the last strand")
    waited = {before for strand in strands for before in strand.after}
    for thread in threads:
        left = thread.stop is StopReason.CANCELLED and thread.parent is not None and waited.isdisjoint(thread.strands)
        if thread.stop not in WHOLE and not left:
            raise ValueError(
                f"protocol {protocol.name} cannot express this demonstration: thread {thread.id} is {thread.stop}"
            )
    ids = protocol.answer(threads)
    reason = "the solver's solution" if solved else "the solver found no solution"
    return Trace(
        problem, protocol.name, 0, 0, threads, strands,
        answer=None if ids is None else read(ids),
        outcome=Outcome(threads[0].stop, solved, reason),
        costs=costs(threads, strands),
    )  # fmt: skip


class _Given(Interpreter):
    """Strands say what was given, in its order: a child runs when its parent waits for it."""

    def __init__(self, protocol: ThreadProtocol, sampled: Iterable[tuple[int, ...]]) -> None:
        super().__init__(protocol, FREE)
        self.sampled = iter(sampled)

    async def strand(
        self, id: StrandId, plan: Continue, after: tuple[StrandId, ...], allowance: Allowance
    ) -> tuple[Strand, StopReason | None] | StopReason:
        sampled = next(self.sampled, None)
        if sampled is None:
            raise ValueError(f"the demonstration ends before thread {id.thread} does")
        stopped = sampled[-1:] and sampled[-1] in plan.stop_ids  # else its thread was cancelled in the middle of it
        stop, cut = (EngineStop.STOP, None) if stopped else (EngineStop.ABORT, StopReason.CANCELLED)
        return Strand(id, plan.sees, after, plan.position, plan.inject, sampled, stop), cut

    def begin(self, thread: Coroutine[Any, Any, Branch]) -> _Child:
        return _Child(thread)

    async def gather(
        self, children: Sequence[Awaitable[Branch]], watch: Callable[[Branch], None] | None = None
    ) -> Sequence[Branch]:
        branches = []
        for child in children:
            branches.append(await child)
            if watch is not None:
                watch(branches[-1])
        return branches

    def hurry(self, thread: str, span: int) -> None:
        """What is given is no more than was wanted."""

    async def drop(self, children: Iterable[Awaitable[Branch]]) -> None:
        for child in children:
            assert isinstance(child, _Child)
            child.thread.close()


class _Child:
    """A thread that is handed to `_ended` when it is waited for."""

    def __init__(self, thread: Coroutine[Any, Any, Branch]) -> None:
        self.thread = thread

    def __await__(self) -> Generator[Coroutine[Any, Any, Branch], Branch, Branch]:
        return (yield self.thread)


def _ended(root: Coroutine[Any, Any, Branch]) -> Branch:
    """Run a thread and those that it waits for. A stack, not recursion: scripts may nest deeper than Python calls."""
    stack = [root]
    ended: Branch | None = None
    try:
        while stack:
            try:
                child: Coroutine[Any, Any, Branch] = stack[-1].send(ended)
                ended = None
                stack.append(child)
            except StopIteration as stop:
                del stack[-1]
                ended = stop.value
    finally:
        for thread in reversed(stack):  # something raised: none of them is waited for any more
            thread.close()
    assert ended is not None
    return ended
