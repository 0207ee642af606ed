"""The two protocols' rules, case by case. (`tests/contract/test_protocols.py` throws anything at them.)"""

import pytest
from fakes import CONTROL, PROMPT, join, spawn

from apr.protocols.serial import Serial
from apr.protocols.spawn_join import SpawnJoin
from apr.threads.protocol import Await, Continue, Fail, Finish, Spawn
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
)

C = CONTROL
MALFORMED = Fail(StopReason.MALFORMED)
FIRST = StrandId("r", 0)


def first_strand(sampled: tuple[int, ...]) -> Strand:
    return Strand(FIRST, (), (), 0, (Injected(Origin.PROMPT, PROMPT),), sampled, EngineStop.STOP)


def child(number: int, stop: StopReason, *message: int) -> Thread:
    return Thread(f"r.{number}", "r", 1, (StrandId(f"r.{number}", 0),), stop, message)


@pytest.mark.parametrize("protocol", [Serial(C), SpawnJoin(C)], ids=lambda p: p.name)
def test_the_root_starts_with_the_prompt_and_nothing_else(protocol: Serial | SpawnJoin) -> None:
    plan = protocol.start(PROMPT)
    assert plan.inject == (Injected(Origin.PROMPT, PROMPT),)
    assert (plan.sees, plan.position, plan.max_tokens) == ((), 0, None)
    assert C.eos in plan.stop_ids
    assert (C.spawn_end in plan.stop_ids) == isinstance(protocol, SpawnJoin)


@pytest.mark.parametrize("protocol", [Serial(C), SpawnJoin(C)], ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("sampled", "decision"),
    [
        (join(30, 31, search=(40,)), Finish((30, 31))),
        (join(30), Finish((30,))),
        (join(), Finish(())),  # "no solution" is an answer of its own
        ((40, C.eos), MALFORMED),
        ((C.eos,), MALFORMED),
        ((), MALFORMED),
        ((C.join, 30), MALFORMED),
        ((C.join, 30, C.join, 31, C.eos), MALFORMED),
        ((40, C.eos, C.join, 30, C.eos), MALFORMED),
        *[((control, C.join, 30, C.eos), MALFORMED) for control in sorted(C.spawning)],
        *[((C.join, 30, control, C.eos), MALFORMED) for control in sorted(C.spawning)],
    ],
)
def test_joins(protocol: Serial | SpawnJoin, sampled: tuple[int, ...], decision: Finish | Fail) -> None:
    strand = first_strand(sampled)
    assert protocol.ended(strand, {FIRST: strand}) == decision


@pytest.mark.parametrize(
    "sampled",
    [
        (C.spawn, C.spawn_end),
        (C.spawn_end,),
        (C.msg, 30, C.spawn_end),
        (C.spawn, 30, C.spawn_end),  # text before the first message
        (C.spawn, C.msg, C.spawn_end),  # an empty message
        (C.spawn, C.msg, 30, C.msg, C.spawn_end),
        (C.spawn, C.msg, C.msg, 30, C.spawn_end),
        (C.msg, C.spawn, C.msg, 30, C.spawn_end),
        (C.spawn, C.spawn, C.msg, 30, C.spawn_end),
        (C.spawn, C.msg, 30, C.spawn_end, C.spawn_end),
        (C.spawn, C.msg, 30),  # no end
        (C.spawn, C.msg, 30, 31),
        *[(control, C.spawn, C.msg, 30, C.spawn_end) for control in (C.pad, C.bos, C.eos, C.join, C.ret)],
        *[(C.spawn, C.msg, 30, control, C.spawn_end) for control in (C.pad, C.bos, C.eos, C.join, C.ret)],
    ],
)
def test_malformed_spawns(sampled: tuple[int, ...]) -> None:
    strand = first_strand(sampled)
    assert SpawnJoin(C).ended(strand, {FIRST: strand}) == MALFORMED


def test_a_child_sees_its_message_and_nothing_else() -> None:
    strand = first_strand(spawn((30, 31), (32,), search=(40, 41)))
    decision = SpawnJoin(C).ended(strand, {FIRST: strand})
    forced = Injected(Origin.FORCED, (C.msg,))
    stops = (C.spawn_end, C.eos)
    assert decision == Spawn(
        (
            Continue((forced, Injected(Origin.MESSAGE, (30, 31))), (), 0, stops),
            Continue((forced, Injected(Origin.MESSAGE, (32,))), (), 0, stops),
        ),
        then=Await(),
    )


def test_returned_messages_take_the_place_of_the_spawn_block() -> None:
    protocol = SpawnJoin(C)
    strand = first_strand(spawn((30,), (31,), (32,), search=(40, 41)))
    children = [
        child(0, StopReason.ANSWERED, 50, 51),
        child(1, StopReason.NO_ANSWER),
        child(2, StopReason.CONTEXT),  # cut short: for its parent it is one that found nothing
    ]
    ret = Injected(Origin.FORCED, (C.ret,))
    kept = len(PROMPT) + 2
    plan = protocol.joined(strand, children, {FIRST: strand})
    assert isinstance(plan, Continue)
    assert plan.inject == (ret, Injected(Origin.MESSAGE, (50, 51)), ret, ret)
    assert (plan.sees, plan.position) == ((Reference(FIRST, kept),), kept)

    second_id = StrandId("r", 1)
    second = Strand(second_id, plan.sees, (), plan.position, plan.inject, spawn((33,)), EngineStop.STOP)
    again = protocol.joined(second, [child(3, StopReason.NO_ANSWER)], {FIRST: strand, second_id: second})
    assert isinstance(again, Continue)
    assert again.sees == (Reference(second_id, 5),)  # all that was injected, and nothing of the second block
    assert again.position == kept + 5


@pytest.mark.parametrize("protocol", [Serial(C), SpawnJoin(C)], ids=lambda p: p.name)
def test_the_roots_message_is_the_answer(protocol: Serial | SpawnJoin) -> None:
    root = Thread("r", None, 0, (FIRST,), StopReason.ANSWERED, (30, 31))
    assert protocol.answer([root]) == (30, 31)
    assert protocol.answer([Thread("r", None, 0, (FIRST,), StopReason.NO_ANSWER)]) is None
    assert protocol.answer([Thread("r", None, 0, (FIRST,), StopReason.MALFORMED)]) is None
