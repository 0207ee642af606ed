"""The spawn/join protocol of APR (arXiv 2504.15466, section 3.2).

A thread samples its search, then one of

    <spawn> <msg> message 1 <msg> message 2 ... </spawn>     open a child per message, and wait for all of them
    <join> message <eos>                                     end, and give the parent this message (may be empty)

A child's context is `<msg>` and its message, nothing else. After the join the parent sees its own tokens up to the
spawn block, then `<ret>` and the returned message of each child, in spawn order, *in place of* the block. The root's
own join message is the answer. Children may spawn in turn, as deep as the limits allow.

With `first`, a parent waits only until one of its children returns a message (in sampled tokens, ties in spawn order). The
others are cancelled there, and their messages are empty: the grammar is the same.
"""

from collections.abc import Iterator, Mapping, Sequence

from apr.protocols.grammar import Block, Rooted, blocks
from apr.scripts.script import Answer, Pieces, Say, Script
from apr.threads.protocol import Await, Continue, Decision, Fail, Finish, Spawn
from apr.threads.trace import Injected, Origin, Reference, StopReason, Strand, StrandId, Thread
from apr.tokens.control import ControlTokens
from apr.tokens.speller import Speller


class SpawnJoin(Rooted):
    """Stateless; positions are serial, so a stock engine serves every strand with its prefix cache."""

    name = "spawn_join"
    shares = False
    nests = True
    purpose = (
        "It can open threads of its own decoding (spawn) and use what they return (join), as in\n"
        "[arXiv 2504.15466](https://arxiv.org/abs/2504.15466)."
    )
    grammar = """A thread samples its search, then one of

```
spawn (msg MESSAGE)+ spawn_end     open a child for each message, and wait for all of them
join MESSAGE eos                   end, and give the parent this message, which may be empty
```

A child's context is `msg` and its message, nothing else. When all children have ended, the parent goes on: its own tokens
up to `spawn`, then for each child, in order, `ret` and the message that it returned, in place of the spawn block. The
root's own join message is the answer."""

    def __init__(self, control: ControlTokens, first: bool = False) -> None:
        self.control = control
        self.first = first
        self._stop_ids = (control.spawn_end, control.eos)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        if strand.sampled[-1:] == (self.control.eos,):
            message = self.control.join_message(strand.sampled)
            return Fail(StopReason.MALFORMED) if message is None else Finish(message)
        messages = self._messages(strand.sampled)
        if messages is None:
            return Fail(StopReason.MALFORMED)
        return Spawn(tuple(self._child(message) for message in messages), then=Await(first=self.first))

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        kept = len(last.injected_ids) + last.sampled.index(self.control.spawn)
        sees = (Reference(last.id, kept),)
        inject: list[Injected] = []
        for child in children:
            inject.append(Injected(Origin.FORCED, (self.control.ret,)))
            if child.message:
                inject.append(Injected(Origin.MESSAGE, child.message))
        return Continue(tuple(inject), sees, last.position + kept, self._stop_ids)

    def write(self, script: Script, speller: Speller) -> list[tuple[int, ...]]:
        return [speller.ids(pieces) for pieces in self._strands(script, ())]

    def _strands(self, script: Script, result: Pieces) -> Iterator[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids. `result`: of a child."""
        control = self.control
        out: list[str | int] = []
        for piece in blocks(script, self.name):
            match piece:
                case Say(pieces):
                    out += pieces
                case Answer(pieces):
                    result = pieces
                case Block(branches):
                    messages: list[str | int] = []
                    for branch in branches:
                        messages += (control.msg, *branch.message)
                    yield [*out, control.spawn, *messages, control.spawn_end]
                    for branch in branches:
                        yield from self._strands(branch.script, branch.result)
                    out = []
        yield [*out, control.join, *result, control.eos]

    def _child(self, message: tuple[int, ...]) -> Continue:
        inject = (Injected(Origin.FORCED, (self.control.msg,)), Injected(Origin.MESSAGE, message))
        return Continue(inject, (), 0, self._stop_ids)

    def _messages(self, sampled: tuple[int, ...]) -> list[tuple[int, ...]] | None:
        """The messages of a spawn block that ends `sampled`; None if it is malformed or has none."""
        c = self.control
        if sampled[-1:] != (c.spawn_end,) or sampled.count(c.spawn_end) != 1 or sampled.count(c.spawn) != 1:
            return None
        if {c.pad, c.bos, c.eos, c.join, c.ret}.intersection(sampled):
            return None
        start = sampled.index(c.spawn)
        block = sampled[start + 1 : -1]
        if c.msg in sampled[:start] or not block or block[0] != c.msg:
            return None
        messages: list[list[int]] = []
        for token in block:
            if token == c.msg:
                messages.append([])
            else:
                messages[-1].append(token)
        return [tuple(message) for message in messages] if all(messages) else None
