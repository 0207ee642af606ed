"""Control tokens: single reserved ids, which no codec of numbers or words may use."""

from __future__ import annotations

from dataclasses import dataclass

CONTROL_TOKENS = ("<pad>", "<bos>", "<eos>", "<spawn>", "<msg>", "</spawn>", "<join>", "<ret>")


@dataclass(frozen=True)
class ControlTokens:
    """Ids of the tokens that protocols act on (see `apr.protocols.spawn_join` for their grammar)."""

    pad: int
    bos: int
    eos: int
    spawn: int
    msg: int
    spawn_end: int
    join: int
    ret: int

    @property
    def spawning_and_joining(self) -> tuple[int, ...]:
        """Tokens that no text has: a model trained elsewhere has to learn what they mean."""
        return (self.spawn, self.msg, self.spawn_end, self.join, self.ret)

    @property
    def spawning(self) -> frozenset[int]:
        """Tokens that have no place in a strand that ends by joining."""
        return frozenset((self.spawn, self.msg, self.spawn_end, self.ret, self.bos, self.pad))

    def join_message(self, sampled: tuple[int, ...]) -> tuple[int, ...] | None:
        """The message of `... <join> message <eos>`; None unless there is exactly one join, EOS ends it, and no token
        of `spawning` is anywhere."""
        if self.spawning.intersection(sampled):
            return None
        if not sampled or sampled[-1] != self.eos or sampled.count(self.join) != 1 or sampled.count(self.eos) != 1:
            return None
        return sampled[sampled.index(self.join) + 1 : -1]
