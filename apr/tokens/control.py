"""Control tokens: single reserved ids, which no codec of numbers or words may use.

`CONTROL_TOKENS` open every built vocabulary, and are what `serial` and `spawn_join` act on. `FAMILY_TOKENS` follow its words:
the tokens of the other systems, in their published names and order, so that one vocabulary serves students of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProtocolName = Literal[
    "serial", "spawn_join", "multiverse", "aspd", "pasta", "threadweaver", "asyncthink", "apar", "skeleton"
]
JoinRule = Literal["all", "first"]  # whom a parent of `spawn_join` waits for
CONTROL_TOKENS = ("<pad>", "<bos>", "<eos>", "<spawn>", "<msg>", "</spawn>", "<join>", "<ret>")
MULTIVERSE = (  # arXiv 2506.09991
    "<Think>", "</Think>", "<Parallel>", "</Parallel>", "<Goal>", "</Goal>", "<Outline>", "</Outline>", "<Path>", "</Path>",
    "<Conclusion>", "</Conclusion>",
)  # fmt: skip
ASPD = ("<|branch|>", "<|/branch|>", "<|title|>", "<|/title|>", "<|para|>", "<|/para|>")  # arXiv 2508.08895
PASTA = ("<promise>", "<tokens>", "</promise>", "<async>", "</async>", "<sync/>")  # arXiv 2502.11517, a tag in pieces
APAR = ("[Fork]", "[Child]")  # arXiv 2401.06761
THREADWEAVER = ("<Outlines>", "</Outlines>", "<Thread>", "</Thread>")  # the others are Multiverse's
ASYNCTHINK = ("<FORK>", "</FORK>", "<JOIN>", "<QUERY>", "<RETURN>", "<RET>", "</RET>", "<ANSWER>")
FAMILY_TOKENS = (*MULTIVERSE, *ASPD, *PASTA, *APAR, *THREADWEAVER, *ASYNCTHINK)
MARKS = (":", ".", ";", *"0123456789")  # words that grammars number children with


@dataclass(frozen=True)
class ControlTokens:
    """Ids of the tokens that every vocabulary has (see `apr.protocols.spawn_join` for their grammar)."""

    pad: int
    bos: int
    eos: int
    spawn: int
    msg: int
    spawn_end: int
    join: int
    ret: int

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
