"""Random and mutated token sequences through every protocol: no exception, and under a millisecond each on average.

    python benchmarks/protocol_fuzz.py [--count 1000000] [--paper-count 100000] [--seed 0]

A sequence is what a strand sampled. The protocol is asked what to do next (`ended`) and, after a spawn, once more with
random results of the children (`joined`). Whatever it accepts must say the same again.
"""

import argparse
import random
import re
import sys
import time
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from apr.protocols import protocol_by_name
from apr.seeds import SplitMix64
from apr.threads.protocol import Await, Continue, Decision, Fail, Finish, Spawn, ThreadProtocol
from apr.threads.trace import ROOT, EngineStop, Injected, Origin, StopReason, Strand, StrandId, Thread
from apr.tokens.control import CONTROL_TOKENS, ControlTokens
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.paper import CALL, CALL_END, FAILURE, JOIN, PaperSpeller, call
from envs.countdown.wording import root_prompt
from solvers.search import SearchOptions, search

CONTROL = ControlTokens(*range(len(CONTROL_TOKENS)))
WORDS = range(len(CONTROL_TOKENS), 220)
BAR = 1_000.0  # microseconds a sequence, on average


class Tally(NamedTuple):
    """What one protocol made of the sequences. `micros`: mean microseconds in the protocol, per sequence."""

    protocol: str
    decisions: Counter[str]
    micros: float
    slowest: float


class Language(typing.Protocol):
    """What strands may sample under some protocols, and how an accepted decision reads."""

    def strand(self, rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A prompt, and what was sampled after it: at random, or something well-formed with up to four edits."""
        ...

    def message(self, rng: random.Random) -> tuple[int, ...]:
        """What a child may return."""
        ...

    def says_again(self, sampled: tuple[int, ...], decision: Finish | Spawn | Continue) -> bool:
        """Whether an accepted decision spells what was sampled."""
        ...


class Compact:
    """The language of reserved control tokens; all others are words."""

    def strand(self, rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (CONTROL.bos, *_words(rng)), self._sampled(rng)

    def message(self, rng: random.Random) -> tuple[int, ...]:
        return tuple(_words(rng))

    def says_again(self, sampled: tuple[int, ...], decision: Finish | Spawn | Continue) -> bool:
        if isinstance(decision, Finish):
            return (*sampled[: sampled.index(CONTROL.join)], CONTROL.join, *decision.message, CONTROL.eos) == sampled
        if isinstance(decision, Continue):
            return False
        block = [token for child in decision.children for run in child.inject for token in run.ids]
        return (*sampled[: sampled.index(CONTROL.spawn)], CONTROL.spawn, *block, CONTROL.spawn_end) == sampled

    def _sampled(self, rng: random.Random) -> tuple[int, ...]:
        kind = rng.randrange(4)
        if kind == 0:
            return tuple(rng.randrange(220) for _ in range(_length(rng)))
        if kind == 1:  # mostly control tokens
            return tuple(rng.randrange(len(CONTROL_TOKENS)) for _ in range(rng.randrange(16)))
        ids = list(_words(rng))
        if kind == 2:
            ids += (CONTROL.join, *_words(rng), CONTROL.eos)
        else:
            ids.append(CONTROL.spawn)
            for _ in range(rng.randint(1, 5)):
                ids += (CONTROL.msg, rng.choice(WORDS), *_words(rng))
            ids.append(CONTROL.spawn_end)
        return _edited(rng, ids, WORDS)


class Paper:
    """The published wording, in its own tokens: strands of searches, whole or edited."""

    def __init__(self) -> None:
        self.speller = PaperSpeller()
        self.words = self.speller.words
        self._join = self.words.continued(JOIN)
        searched = [strand for seed in range(60) for strand in self._searched(seed)]
        ends = self.words.continued(CALL_END)
        self._calls = [strand for strand in searched if strand[1][-2:-1] == ends]
        self._others = [strand for strand in searched if strand[1][-2:-1] != ends]

    def strand(self, rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
        prompt, sampled = rng.choice(self._calls if rng.random() < 0.6 else self._others)
        kind = rng.randrange(6)
        if kind == 0:
            return prompt, tuple(rng.randrange(len(self.words) + 3) for _ in range(_length(rng)))
        if kind == 1:
            return prompt, (*(rng.randrange(8, 44) for _ in range(_length(rng))), CONTROL.eos)  # phrases
        if kind == 2:
            return prompt, (*sampled[: rng.randrange(len(sampled))], *self._join)  # a join that it may not write
        return prompt, _edited(rng, list(sampled), range(8, len(self.words)))

    def message(self, rng: random.Random) -> tuple[int, ...]:
        return self.words.continued("Moving to Node #0,1\n10,10 equal: Goal Reached\n")

    def says_again(self, sampled: tuple[int, ...], decision: Finish | Spawn | Continue) -> bool:
        text = self.words.text(sampled[:-1])
        if isinstance(decision, Continue):  # a call in place of a join
            [forced] = decision.inject
            return JOIN.strip() in self.words.text(sampled) and self.words.text(forced.ids).endswith(CALL)
        if isinstance(decision, Finish):
            message = self.words.text(decision.message)
            place = text.rfind(message) if message else len(text) - len(FAILURE)
            claimed = text[:place].endswith("Goal Reached\n") if message else text.endswith(FAILURE)
            rest = text[place + len(message) :].removeprefix("" if message else FAILURE)
            return claimed and re.fullmatch("(Exit Sub Search at level [0-9]+\n)*", rest) is not None
        told = [self.words.text(child.inject[-1].ids) for child in decision.children]
        names = [line.partition("#")[2].partition("\n")[0] for line in told]
        return text.endswith(call(names, 1))

    def _searched(self, seed: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """What the strands of a search for 24 sampled, all after the root's prompt."""
        rng = random.Random(seed)
        numbers = tuple(sorted(rng.randint(1, 30) for _ in range(rng.choice((3, 4)))))
        options = SearchOptions(rng.randint(1, 4), 3, rng.random(), spawn_depth=seed % 2)
        log = search(24, Node(numbers, ()), options, SplitMix64(seed))
        prompt = root_prompt(self.speller, numbers, 24)
        yield from ((prompt, sampled) for sampled in self.speller.spell(log))


class Tagged:
    """The language of a grammar of tags: what opens children, answers, and what is neither.

    `spawn`: what opens one child, with `*` for words and `#` for its number; `opening` before all of these, and `closing` after
    them. `answer` opens the answer, and after `asks` the root goes on in a strand of its own.
    """

    def __init__(
        self, speller: CompactSpeller, opening: str, spawn: str, closing: str, answer: str = "<join>", asks: str = ""
    ) -> None:
        self.vocabulary = speller.vocabulary
        self.answer, self.asks = answer, asks
        self.opening, self.spawn, self.closing = opening.split(), spawn.split(), closing.split()

    def strand(self, rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (CONTROL.bos, *_words(rng)), self._sampled(rng)

    def message(self, rng: random.Random) -> tuple[int, ...]:
        return ()

    def says_again(self, sampled: tuple[int, ...], decision: Finish | Spawn | Continue) -> bool:
        text = self.vocabulary.text(sampled)
        if isinstance(decision, Finish) and decision.message is None:
            return text.endswith("<eos>") and "<join>" not in text
        if isinstance(decision, Finish):
            said = self.vocabulary.text(decision.message or ())
            return text.endswith(f"{self.answer} {said} <eos>" if said else f"{self.answer} <eos>")
        if isinstance(decision, Continue):
            return bool(self.asks) and text.endswith(self.asks)
        one = " ".join(
            {"*": r"(?:(?!<[A-Za-z/|]|\[).)+", "#": "[0-9 ']+"}.get(word, re.escape(word)) for word in self.spawn
        )
        parts = [*map(re.escape, self.opening), f"({one}(?: {one})*)", *map(re.escape, self.closing)]
        found = re.search(" ".join(parts) + "$", text)
        tag = next(word for word in self.spawn if word not in "*#")
        return found is not None and len(decision.children) <= found[1].count(tag)

    def _sampled(self, rng: random.Random) -> tuple[int, ...]:
        kind, tag = rng.randrange(4), self.vocabulary.ids
        if kind == 0:
            return tuple(rng.randrange(len(self.vocabulary)) for _ in range(_length(rng)))
        if kind == 1:  # mostly control tokens
            reserved = sorted(self.vocabulary.reserved)
            return tuple(rng.choice(reserved) for _ in range(rng.randrange(16)))
        ids = list(_words(rng))
        if kind == 2:
            ids += (tag[self.answer], *_words(rng), CONTROL.eos)
        elif self.asks and rng.random() < 0.2:
            ids.append(tag[self.asks])
        else:
            ids = [] if self.spawn[0] == "#" else ids  # a skeleton holds points alone
            ids += (tag[word] for word in self.opening)
            for number in range(1, 2 if not self.closing else rng.randint(2, 6)):
                for word in self.spawn:
                    ids += (
                        (rng.choice(WORDS), *_words(rng))
                        if word == "*"
                        else (tag[str(number) if word == "#" else word],)
                    )
            ids += (tag[word] for word in self.closing)
        return _edited(rng, ids, WORDS)


NEVER_JOIN = ("apar",)
PAPER, COMPACT = Paper(), CompactSpeller()
CHAINS = ("serial", "spawn_join")
TAGGED: dict[str, tuple[str, ...]] = {  # how children are opened
    "multiverse": ("<Parallel> <Goal>", "<Outline> # : * </Outline>", "</Goal>"),
    "aspd": ("", "<|title|> * <|/title|>", "<|para|>"),
    "pasta": ("", "<promise> * <tokens> # </promise>", ""),
    "asyncthink": ("", "<FORK> # * </FORK>", "", "<ANSWER>", "<JOIN>"),
    "threadweaver": ("<Parallel> <Outlines>", "<Outline> # : * </Outline>", "</Outlines>"),
    "apar": ("", "* [Fork]", ""),
    "skeleton": ("", "# . *", "<eos>"),
}
# The languages and their protocols, by name.
IMPLEMENTATIONS: dict[str, tuple[Language, ThreadProtocol]] = {
    **{f"compact {name}": (Compact(), protocol_by_name(name, COMPACT)) for name in CHAINS},
    **{f"paper {name}": (PAPER, protocol_by_name(name, PAPER.speller)) for name in CHAINS},
    **{f"compact {name}": (Tagged(COMPACT, *said), protocol_by_name(name, COMPACT)) for name, said in TAGGED.items()},
}


def _edited(rng: random.Random, ids: list[int], words: range) -> tuple[int, ...]:
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        at = rng.randrange(len(ids) + 1)
        token = rng.randrange(len(CONTROL_TOKENS)) if rng.random() < 0.7 else rng.choice(words)
        match rng.randrange(4):
            case 0:
                ids.insert(at, token)
            case 1:
                del ids[at : at + 1 + rng.randrange(3)]
            case 2:
                ids[at : at + 1] = [token]
            case _:
                other = rng.randrange(len(ids) + 1)
                ids[at:at] = ids[other : other + 4]
    return tuple(ids)


def _words(rng: random.Random) -> Iterator[int]:
    return (rng.choice(WORDS) for _ in range(_length(rng)))


def _length(rng: random.Random) -> int:
    """Mostly short; now and then as long as a large window."""
    return rng.randrange(12) if rng.random() < 0.999 else rng.randrange(4096)


def results(language: Language, rng: random.Random, count: int, shares: bool) -> list[Thread]:
    """What `count` children may have come to: messages, empty messages, what they wrote, failures; some never started."""
    children = []
    for number in range(count):
        stop = rng.choice(tuple(StopReason))
        if shares and stop is StopReason.ANSWERED:
            stop = StopReason.RETURNED
        message = language.message(rng) if stop is StopReason.ANSWERED else ()
        strands = () if stop is StopReason.WORK else (StrandId(f"{ROOT}.{number}", 0),)
        children.append(Thread(f"{ROOT}.{number}", ROOT, 1, strands, stop, message))
    return children


def stands_after(plan: Continue, strand: Strand, strands: Mapping[StrandId, Strand], room: bool = False) -> bool:
    """Whether it goes on from a part of `strand`, and perhaps from whole others, at a position that follows what it follows.
    `room`: positions may be left free."""
    lengths = dict(plan.sees)
    length = lengths.pop(strand.id)
    whole = all(len(strands[other].ids) == seen for other, seen in lengths.items())
    least = strand.position + length
    most = max([least + sum(lengths.values()), *(strands[other].end for other in lengths)]) + 10_000 * room
    return whole and 0 <= length <= len(strand.ids) and least <= plan.position <= most


def check(
    language: Language, protocol: ThreadProtocol, rng: random.Random, prompt: tuple[int, ...], sampled: tuple[int, ...]
) -> tuple[Decision, int]:
    """Ask about one sequence. Returns the decision and the protocol's nanoseconds; raises `AssertionError` on a fault."""
    strand = Strand(StrandId(ROOT, 0), (), (), 0, (Injected(Origin.PROMPT, prompt),), sampled, EngineStop.STOP)
    strands = {strand.id: strand}
    started = time.perf_counter_ns()
    decision = protocol.ended(strand, strands)
    spent = time.perf_counter_ns() - started
    if isinstance(decision, Fail):
        assert decision.reason is StopReason.MALFORMED, (sampled, decision)
        return decision, spent
    if isinstance(decision, Await):  # it waits for what it opened before
        return decision, spent
    assert isinstance(decision, Finish | Spawn | Continue), (sampled, decision)
    assert language.says_again(sampled, decision), (sampled, decision)
    if isinstance(decision, Finish):
        return decision, spent
    if isinstance(decision, Continue):
        assert stands_after(decision, strand, strands), (sampled, decision)
        return decision, spent
    last = strand
    if isinstance(decision.then, Continue):  # it goes on, and waits in its next strand
        assert stands_after(decision.then, strand, strands, room=True), (sampled, decision)
        last = Strand(
            StrandId(ROOT, 1), decision.then.sees, (), decision.then.position, (), sampled[:1], EngineStop.STOP
        )
        strands[last.id] = last
    children = results(language, rng, len(decision.children), protocol.shares)
    for child, plan in zip(children, decision.children):
        for id in child.strands:
            strands[id] = Strand(id, plan.sees, (), plan.position, plan.inject, sampled[:3], EngineStop.STOP)
    started = time.perf_counter_ns()
    if protocol.name in NEVER_JOIN:
        return decision, spent
    joined = protocol.joined(last, children, strands)
    spent += time.perf_counter_ns() - started
    if protocol.name == "skeleton":
        assert joined == Finish(None), (sampled, joined)
        return decision, spent
    assert isinstance(joined, Continue), (sampled, joined)
    assert stands_after(joined, last, strands), (sampled, joined)
    messages = [token for child in children for token in child.message]
    injected = [token for run in joined.inject for token in run.ids if run.origin is Origin.MESSAGE]
    assert injected == messages, (sampled, joined)
    return decision, spent


def fuzz(name: str, count: int, seed: int) -> Tally:
    """`count` sequences through one protocol."""
    language, protocol = IMPLEMENTATIONS[name]
    rng = random.Random(seed)
    decisions: Counter[str] = Counter()
    total = slowest = 0
    for _ in range(count):
        decision, spent = check(language, protocol, rng, *language.strand(rng))
        decisions[type(decision).__name__] += 1
        total += spent
        slowest = max(slowest, spent)
    return Tally(name, decisions, total / count / 1e3, slowest / 1e3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=1_000_000, help="sequences for each protocol of the compact speller"
    )
    parser.add_argument("--paper-count", type=int, default=100_000, help="sequences for each of the paper speller")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    slow = False
    for name in IMPLEMENTATIONS:
        count = args.paper_count if name.startswith("paper") else args.count
        tally = fuzz(name, count, args.seed)
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(tally.decisions.items()))
        print(f"{name}: {count} sequences, {tally.micros:.2f} us each, {tally.slowest:.0f} at most ({kinds})")
        slow = slow or tally.micros >= BAR
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
