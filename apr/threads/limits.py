"""Limits stop a thread or a trace while it runs; budgets are conditions on costs that enter the reward and the report.

Limits are data. Before each strand they are checked in the order of the fields below, and at a spawn in the order
depth, threads, width. Trace-wide allowances (work, threads, width) are divided among the children at each spawn, in
spawn order, and what is unused returns at the join, so nothing depends on which child finishes first.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from apr.threads.trace import Costs, StopReason


class Limits(BaseModel):
    """`None` means no limit, except that the model's window bounds `context` or, where an engine lets strands see several
    others, `reach`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: int = Field(default=160, ge=8, description="tokens in any one strand's context, prompt included")
    reach: int | None = Field(
        default=None, ge=8, description="positions, where these are fewer or more than tokens seen"
    )
    work: int | None = Field(default=None, ge=1, description="tokens of the whole trace, injected ones included")
    span: int | None = Field(default=None, ge=1, description="sampled tokens on the longest dependent chain")
    depth: int = Field(default=1, ge=0, description="nesting: 0 forbids spawning, 1 lets only the root spawn")
    threads: int | None = Field(default=64, ge=1, description="threads ever started in a trace, the root included")
    width: int | None = Field(default=None, ge=1, description="threads alive at once, waiting parents included")
    seconds: float | None = Field(default=None, gt=0, description="wall clock of a trace; for evaluation only")


class Budgets(BaseModel):
    """Hard budgets: a trace is within them if no cost exceeds its budget. `None` means no budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: int | None = Field(default=None, ge=1, description="tokens in any one strand's context")
    span_sampled: int | None = Field(default=None, ge=1, description="latency, in sampled tokens")
    work: int | None = Field(default=None, ge=1, description="tokens of the whole trace, injected ones included")

    def within(self, costs: Costs) -> bool:
        return all(
            budget is None or spent <= budget
            for budget, spent in (
                (self.context, costs.context),
                (self.span_sampled, costs.span_sampled),
                (self.work, costs.work),
            )
        )


@dataclass
class Allowance:
    """A thread's share of what the whole trace may use. It counts the thread itself as already started and alive."""

    work: int | None
    threads: int | None
    width: int | None

    @classmethod
    def whole(cls, limits: Limits) -> Allowance:
        return cls(
            limits.work,
            None if limits.threads is None else limits.threads - 1,
            None if limits.width is None else limits.width - 1,
        )

    def refuse(self, children: int, depth: int, limits: Limits) -> StopReason | None:
        """Why a thread at `depth` may not open `children` more threads; None if it may."""
        if depth + 1 > limits.depth:
            return StopReason.DEPTH
        if self.threads is not None and children > self.threads:
            return StopReason.THREADS
        if self.width is not None and children > self.width:
            return StopReason.WIDTH
        return None

    def split(self, children: int, goes_on: bool, nest: bool) -> list[Allowance]:
        """Shares for `children` new threads. A thread that goes on keeps the last share for itself; one that waits
        keeps nothing until its children return theirs. Children that may not `nest` have no use for threads: the parent
        keeps all."""
        parts = children + goes_on
        work = _shares(self.work, parts)
        own_work = work.pop() if goes_on else 0
        left = [None if amount is None else amount - children for amount in (self.threads, self.width)]
        if nest:
            threads, width = (_shares(amount, parts) for amount in left)
            left = [shares.pop() if goes_on else 0 for shares in (threads, width)]
        else:
            threads, width = (_shares(None if amount is None else 0, children) for amount in left)
        own = (own_work, *left)
        limited = (self.work is not None, self.threads is not None, self.width is not None)
        self.work, self.threads, self.width = (share if is_set else None for share, is_set in zip(own, limited))
        return [Allowance(*share) for share in zip(work, threads, width)]

    def give_back(self, child: Allowance) -> None:
        """Take over what an ended child left: its unused work and threads, and the width it occupied itself."""
        if self.work is not None and child.work is not None:
            self.work += child.work
        if self.threads is not None and child.threads is not None:
            self.threads += child.threads
        if self.width is not None and child.width is not None:
            self.width += child.width + 1


def _shares(amount: int | None, parts: int) -> list[int | None]:
    if amount is None:
        return [None] * parts
    return [amount // parts + (i < amount % parts) for i in range(parts)]
