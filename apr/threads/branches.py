"""What a thread and those below it leave: strands, ends, allowance; and how much of that stands when they are cancelled."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace

from apr.threads.costs import weight
from apr.threads.limits import Allowance
from apr.threads.trace import WHOLE, EngineStop, StopReason, Strand, StrandId, Thread, VersionSpan

OWN_ENDS = (*WHOLE, StopReason.MALFORMED)  # by what it said


@dataclass
class Branch:
    """A thread and the branches below it, and what it left of its allowance.

    `born`: the span at which it was spawned. `parts`: its own strands and its children's branches, in the order in which it
    started the ones and gathered the others. `ends`: the strands after which the branch has ended. They are the thread's own
    last strand, and the ends of those children that no strand of its own came after. A thread that never started has none.
    """

    id: str
    born: int
    allowance: Allowance
    parts: list[Strand | Branch] = field(default_factory=list)
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


def cancel(
    cancelled: Branch, span: int, strands: MutableMapping[StrandId, Strand], spans: MutableMapping[StrandId, int]
) -> None:
    """Leave of a branch what it had sampled by `span`, in place; nobody waits for the rest, nor for its message.

    Strands are cut there, and what starts there or later is dropped, threads included; what was spent on that returns to the
    branch's allowance. Threads that had not ended by then are `cancelled`; one that had is as it was. So the result does not
    depend on how far the branch had come when it was stopped, if it was this far. `strands`, `spans`: of the trace, by id.
    """
    work = threads = 0

    def forget(strand: Strand) -> None:
        nonlocal work
        work += weight(strand)
        del strands[strand.id], spans[strand.id]

    stack = [cancelled]
    while stack:
        branch = stack.pop()
        # One that a limit stops just there may have been stopped there because nobody wanted more.
        ended = max((spans[end] for end in branch.ends), default=0)
        late = ended > span or (ended == span and branch.thread.stop not in OWN_ENDS)
        parts: list[Strand | Branch] = []
        for part in branch.parts:
            if isinstance(part, Branch):
                if part.born < span:
                    parts.append(part)
                    stack.append(part)
                else:
                    late = True
                    gone, dropped = part.flat()
                    threads += len(gone)
                    for strand in dropped:
                        forget(strand)
            elif (started := spans[part.id] - len(part.sampled)) >= span:
                late = True
                forget(part)
            else:
                kept = shortened(part, span - started)
                work += weight(part) - weight(kept)
                strands[part.id], spans[part.id] = kept, started + len(kept.sampled)
                parts.append(kept)
        thread = branch.thread
        if late:
            own = tuple(part.id for part in parts if isinstance(part, Strand))
            branch.ended = replace(thread, strands=own, stop=StopReason.CANCELLED, message=())
        branch.parts = parts
        branch.ends = tuple(end for end in branch.ends if end in strands)
    if cancelled.allowance.work is not None:
        cancelled.allowance.work += work
    if cancelled.allowance.threads is not None:
        cancelled.allowance.threads += threads


def shortened(strand: Strand, length: int) -> Strand:
    """The strand with no more than so many sampled tokens."""
    if length >= len(strand.sampled):
        return strand
    versions = tuple(
        VersionSpan(one.version, one.start, min(one.end, length)) for one in strand.versions if one.start < length
    )
    logprobs = None if strand.logprobs is None else strand.logprobs[:length]
    return replace(strand, sampled=strand.sampled[:length], logprobs=logprobs, versions=versions, stop=EngineStop.ABORT)
