"""The serial protocol (SoS, SoS+): one thread, one strand, no spawn."""

from collections.abc import Mapping, Sequence

from apr.protocols.grammar import Rooted
from apr.scripts.script import Answer, Say, Script
from apr.threads.protocol import Decision, Fail, Finish
from apr.threads.trace import StopReason, Strand, StrandId, Thread
from apr.tokens.control import ControlTokens
from apr.tokens.speller import Speller


class Serial(Rooted):
    """The root writes its search, then `<join> answer <eos>`; an empty answer means "no solution". Where the vocabulary has no
    join, all that it writes is the answer, in which the environment finds what counts."""

    name = "serial"
    shares = False
    nests = False
    purpose = "It writes its search in one line."
    grammar = (
        "A thread samples its search, then `join`, its answer and `eos`. An empty answer means that it found none."
    )

    def __init__(self, control: ControlTokens) -> None:
        self.control = control
        self._stop_ids = (control.eos,)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        if self.control.join < 0:
            return Finish(strand.sampled[:-1])
        message = self.control.join_message(strand.sampled)
        return Fail(StopReason.MALFORMED) if message is None else Finish(message)

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        raise AssertionError("a serial thread has no children")

    def write(self, script: Script, speller: Speller) -> list[tuple[int, ...]]:
        if self.control.join < 0:
            raise ValueError("this vocabulary has no token for join: a model is to be taught with one that has")
        out: list[str | int] = []
        for piece in script:
            match piece:
                case Say(pieces):
                    out += pieces
                case Answer(pieces):
                    return [speller.ids([*out, self.control.join, *pieces, self.control.eos])]
                case _:
                    raise ValueError("the script forks, and the protocol serial opens no threads")
        raise ValueError("a root's script ends with an Answer")
