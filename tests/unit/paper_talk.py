"""What threads of the paper speller say, and who asks a protocol about it."""

from typing import Any

from paper_logs import protocol_for

from apr.seeds import SplitMix64
from apr.threads.protocol import Await, Continue, Decision, Fail, Spawn
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    StopReason,
    Strand,
    StrandId,
    Thread,
)
from envs.countdown.log import Node
from envs.countdown.paper import PaperSpeller
from envs.countdown.paper_protocols import PaperSpawnJoin
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

MALFORMED = Fail(StopReason.MALFORMED)
FIRST = StrandId("r", 0)
LISTING = """
Exploring Operation: 4+1=5, Resulting Numbers: [6, 8, 5]
Generated Node #0,0: 10:[6, 8, 5] Operation: 4+1=5
Exploring Operation: 6-1=5, Resulting Numbers: [4, 8, 5]
Generated Node #0,1: 10:[4, 8, 5] Operation: 6-1=5
"""
CALLING = """\
<Start Sub Search 0 at level 1> Moving to Node #0,0
<Start Sub Search 1 at level 1> Moving to Node #0,1
<End Calling Sub Searches>
"""
PATH = """\
Moving to Node #0
Current State: 10:[1, 4, 6, 8], Operations: []
Exploring Operation: 8-6=2, Resulting Numbers: [1, 4, 2]
10,10 equal: Goal Reached
"""
GOAL = f"\n10,10 equal: Goal Reached\n{PATH}"
TOLD = "Moving to Node #0\nCurrent State: 10:[1, 4, 6, 8], Operations: []"


def sample() -> list[str]:
    """Text to train tokenizers on: some searches, told and sampled."""
    own = PaperSpeller()
    made = []
    for seed in range(6):
        log = search(24, Node((2, 3, 5, 8 + seed), ()), SearchOptions(3, 3, spawn_depth=seed % 2), SplitMix64(seed))
        trace = encode(log, own, protocol_for(log, own), {"id": "p"})
        made += [own.words.text([i for i in strand.ids if i > 7]) for strand in trace.strands]
    return made


class Talk:
    """Asks a protocol about texts."""

    def __init__(self, speller: PaperSpeller, protocol: Any = PaperSpawnJoin) -> None:
        self.speller = speller
        self.words = speller.words
        self.protocol = protocol(speller)

    def strand(self, text: str, told: str = TOLD, thread: str = "r", ended: bool = True) -> Strand:
        """A first strand that sampled `text`, then EOS if `ended`."""
        sampled = (*self.words.continued(text), *([self.words.control.eos] if ended else []))
        injected = (Injected(Origin.PROMPT, self.words.opened(told)),)
        return Strand(StrandId(thread, 0), (), (), 0, injected, sampled, EngineStop.STOP)

    def decide(self, text: str, **of: Any) -> Decision:
        strand = self.strand(text, **of)
        decision: Decision = self.protocol.ended(strand, {strand.id: strand})
        return decision

    def told(self, decision: Decision) -> list[str]:
        """What children are told; each in a run of its own after BOS."""
        assert isinstance(decision, Spawn) and decision.then == Await()
        for child in decision.children:
            forced, message = child.inject
            assert (forced.origin, message.origin) == (Origin.FORCED, Origin.MESSAGE)
            assert forced.ids and set(forced.ids) == {self.words.control.bos}
            assert (child.sees, child.position) == ((), 0)
            assert forced.ids + message.ids == self.words.opened(self.words.text(message.ids).removeprefix(" "))
        return [self.words.text(child.inject[1].ids).removeprefix(" ") for child in decision.children]

    def joined(self, strand: Strand, *messages: str, stops: tuple[StopReason, ...] = ()) -> Continue:
        children = [
            Thread(f"{strand.id.thread}.{i}", strand.id.thread, 1, (), stop, self.words.continued(message))
            for i, (message, stop) in enumerate(zip(messages, stops or [StopReason.ANSWERED] * len(messages)))
        ]
        plan = self.protocol.joined(strand, children, {strand.id: strand})
        assert isinstance(plan, Continue)
        return plan

    def text(self, plan: Continue) -> str:
        return self.words.text([i for run in plan.inject for i in run.ids])
