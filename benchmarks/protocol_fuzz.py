"""Random and mutated token sequences through every protocol: no exception, and under a millisecond each on average.

    python benchmarks/protocol_fuzz.py [--count 1000000] [--seed 0]

A sequence is what a strand sampled. The protocol is asked what to do next (`ended`) and, after a spawn, once more with
random results of the children (`joined`). Whatever it accepts must say the same ids again.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from apr.protocols import PROTOCOLS
from apr.threads.protocol import Continue, Decision, Fail, Finish, Spawn, ThreadProtocol, seen_length
from apr.threads.trace import ROOT, EngineStop, Injected, Origin, StopReason, Strand, StrandId, Thread
from apr.tokens.control import CONTROL_TOKENS, ControlTokens

CONTROL = ControlTokens(*range(len(CONTROL_TOKENS)))
WORDS = range(len(CONTROL_TOKENS), 220)
BAR = 1_000.0  # microseconds a sequence, on average


class Tally(NamedTuple):
    """What one protocol made of the sequences. `micros`: mean microseconds in the protocol, per sequence."""

    protocol: str
    decisions: Counter[str]
    micros: float
    slowest: float


def sequence(rng: random.Random) -> tuple[int, ...]:
    """Tokens at random, or something well-formed, with up to four edits."""
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
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        at = rng.randrange(len(ids) + 1)
        token = rng.randrange(len(CONTROL_TOKENS)) if rng.random() < 0.7 else rng.choice(WORDS)
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


def results(rng: random.Random, count: int) -> list[Thread]:
    """What `count` children may have come to: messages, empty messages, failures; some of them never started."""
    children = []
    for number in range(count):
        stop = rng.choice(tuple(StopReason))
        message = tuple(_words(rng)) if stop is StopReason.ANSWERED else ()
        strands = () if stop is StopReason.WORK else (StrandId(f"{ROOT}.{number}", 0),)
        children.append(Thread(f"{ROOT}.{number}", ROOT, 1, strands, stop, message))
    return children


def said(sampled: tuple[int, ...], decision: Finish | Spawn) -> tuple[int, ...]:
    """The ids that spell an accepted decision, after the same search."""
    if isinstance(decision, Finish):
        return (*sampled[: sampled.index(CONTROL.join)], CONTROL.join, *decision.message, CONTROL.eos)
    block = [token for child in decision.children for run in child.inject for token in run.ids]
    return (*sampled[: sampled.index(CONTROL.spawn)], CONTROL.spawn, *block, CONTROL.spawn_end)


def check(protocol: ThreadProtocol, rng: random.Random, sampled: tuple[int, ...]) -> tuple[Decision, int]:
    """Ask about one sequence. Returns the decision and the protocol's nanoseconds; raises `AssertionError` on a fault."""
    prompt = (CONTROL.bos, *_words(rng))
    strand = Strand(StrandId(ROOT, 0), (), (), 0, (Injected(Origin.PROMPT, prompt),), sampled, EngineStop.STOP)
    strands = {strand.id: strand}
    started = time.perf_counter_ns()
    decision = protocol.ended(strand, strands)
    spent = time.perf_counter_ns() - started
    if isinstance(decision, Fail):
        assert decision.reason is StopReason.MALFORMED, (sampled, decision)
        return decision, spent
    assert isinstance(decision, Finish | Spawn), (sampled, decision)
    assert said(sampled, decision) == sampled, (sampled, decision)
    if isinstance(decision, Finish):
        return decision, spent
    children = results(rng, len(decision.children))
    started = time.perf_counter_ns()
    joined = protocol.joined(strand, children, strands)
    spent += time.perf_counter_ns() - started
    assert isinstance(joined, Continue), (sampled, joined)
    assert joined.position == seen_length(joined.sees, strands) <= len(strand.ids), (sampled, joined)
    messages = [token for child in children for token in child.message]
    injected = [token for run in joined.inject for token in run.ids if run.origin is Origin.MESSAGE]
    assert injected == messages, (sampled, joined)
    return decision, spent


def fuzz(protocol: ThreadProtocol, count: int, seed: int) -> Tally:
    """`count` sequences through one protocol."""
    rng = random.Random(seed)
    decisions: Counter[str] = Counter()
    total = slowest = 0
    for _ in range(count):
        decision, spent = check(protocol, rng, sequence(rng))
        decisions[type(decision).__name__] += 1
        total += spent
        slowest = max(slowest, spent)
    return Tally(protocol.name, decisions, total / count / 1e3, slowest / 1e3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="sequences for each protocol")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    slow = False
    for protocol in PROTOCOLS.values():
        tally = fuzz(protocol(CONTROL), args.count, args.seed)
        kinds = ", ".join(f"{name} {number}" for name, number in sorted(tally.decisions.items()))
        print(
            f"{tally.protocol}: {args.count} sequences, {tally.micros:.2f} us each, {tally.slowest:.0f} at most ({kinds})"
        )
        slow = slow or tally.micros >= BAR
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
