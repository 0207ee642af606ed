"""What every thread protocol must do, whatever a model samples: decide, never raise, and say again what it accepts."""

import random
import runpy
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import smol_like
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.protocols import protocol_by_name
from apr.threads.protocol import Await, Continue, Fail, Finish, Spawn, ThreadProtocol
from apr.threads.trace import ROOT, EngineStop, Injected, Origin, StopReason, Strand, StrandId, Thread
from apr.tokens.chat import ChatSpeller
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.control import ControlTokens
from envs.countdown.compact import CompactSpeller

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "protocol_fuzz.py"))
CONTROL = FUZZ["CONTROL"]
NAMES = list(FUZZ["IMPLEMENTATIONS"])
IMPLEMENTATIONS = [pytest.param(protocol, id=name) for name, (_, protocol) in FUZZ["IMPLEMENTATIONS"].items()]
SPELT = {"compact": CompactSpeller(), "chat": ChatSpeller(ChatVocabulary(smol_like()))}  # with control tokens
BY_TOKENS = [
    pytest.param(protocol_by_name(name, speller), speller.vocabulary.control, id=f"{spelt}-{name}")
    for spelt, speller in SPELT.items()
    for name in FUZZ["CHAINS"]
]
TOKENS = st.integers(0, 15) | st.integers(0, 250)  # control tokens (and phrases) more often than not


@pytest.mark.parametrize("name", NAMES)
@PATIENT
@given(sampled=st.lists(TOKENS, max_size=30).map(tuple), seed=st.integers(0, 99))
def test_any_sequence_gets_a_decision(name: str, sampled: tuple[int, ...], seed: int) -> None:
    language, protocol = FUZZ["IMPLEMENTATIONS"][name]
    rng = random.Random(seed)
    prompt, _ = language.strand(rng)
    decision, _ = FUZZ["check"](language, protocol, rng, prompt, sampled)
    assert isinstance(decision, Finish | Spawn | Fail | Continue | Await)


@pytest.mark.parametrize("name", NAMES)
def test_20_000_random_and_mutated_sequences(name: str) -> None:
    protocol = FUZZ["IMPLEMENTATIONS"][name][1]
    tally = FUZZ["fuzz"](name, 20_000, 1)
    assert tally.micros < FUZZ["BAR"]
    assert tally.decisions["Fail"] > 1_000 and tally.decisions["Finish"] > 1_000  # the sample reaches both sides
    assert (tally.decisions["Spawn"] > 1_000) == (protocol.name != "serial")


@pytest.mark.parametrize(("protocol", "control"), BY_TOKENS)
@PATIENT
@given(
    search=st.lists(st.integers(8, 99), max_size=9),
    messages=st.lists(st.lists(st.integers(8, 99), min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_what_is_well_formed_is_accepted(
    protocol: ThreadProtocol, control: ControlTokens, search: list[int], messages: list[list[int]]
) -> None:
    def decide(*sampled: int) -> Any:
        strand = Strand(StrandId(ROOT, 0), (), (), 0, (), sampled, EngineStop.STOP)
        return protocol.ended(strand, {strand.id: strand})

    message = tuple(messages[0])
    assert decide(*search, control.join, *message, control.eos) == Finish(message)
    assert decide(*search, control.join, control.eos) == Finish(())
    block = [token for text in messages for token in (control.msg, *text)]
    spawned = decide(*search, control.spawn, *block, control.spawn_end)
    if control.spawn_end in protocol.start(()).stop_ids:
        assert isinstance(spawned, Spawn) and len(spawned.children) == len(messages)
    else:
        assert spawned == Fail(StopReason.MALFORMED)


@pytest.mark.parametrize("protocol", IMPLEMENTATIONS)
def test_the_root_starts_with_the_whole_prompt(protocol: ThreadProtocol) -> None:
    prompt = (CONTROL.bos, 30, 31)
    plan = protocol.start(prompt)
    assert plan.inject == (Injected(Origin.PROMPT, prompt),)
    assert (plan.sees, plan.position) == ((), 0)
    assert CONTROL.eos in plan.stop_ids


@pytest.mark.parametrize("protocol", IMPLEMENTATIONS)
@pytest.mark.parametrize("stop", StopReason)
def test_only_a_message_is_an_answer(protocol: ThreadProtocol, stop: StopReason) -> None:
    message = (30, 31) if stop is StopReason.ANSWERED else ()
    assert protocol.answer([Thread(ROOT, None, 0, (), stop, message)]) == (message or None)
