"""The chat speller: what is written in a pretrained model's vocabulary can be read back, and the runtime reproduces it."""

import json
import pickle
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import CHATML, HEADERS, RESERVED, TOKENIZERS, smol_like
from fakes import FREE, replays, run, timeless
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_compact import NODES, NUMBER, NUMBERS, STEPS

from apr.data.store import facts_of
from apr.errors import CheckpointError
from apr.protocols import protocol_by_name
from apr.protocols.spawn_join import SpawnJoin
from apr.seeds import SplitMix64
from apr.sft.rows import IGNORED, rows
from apr.spellers import speller_of
from apr.tokens.chat import ChatSpeller
from apr.tokens.chat_vocabulary import SPAWNING_TOKENS, ChatVocabulary
from apr.tokens.speller import Condition, Message
from envs.countdown.log import Node, Promising, Queued, SearchLog, Spawned, Step, Visited
from envs.countdown.log import Tested as Leaf  # pytest takes names in Test for its own
from envs.countdown.verify import verify
from envs.countdown.wording import SYSTEM, encode, root_prompt, spell
from solvers.search import SearchOptions, search

FEWER = settings(max_examples=40)
MADE = {
    f"{name}, {kind}": ChatSpeller(ChatVocabulary(make(), names))
    for name, make in TOKENIZERS.items()
    for kind, names in (("added", None), ("reserved", RESERVED))
}
TOLD: list[Message] = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
SMOL = MADE["smol, added"]
PLACES = {"smol": "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"}
PLACES["llama"] = (
    "<|begin|><|head|>system<|/head|>\n\nToday Date: 26 Jul 2024\n\n{}<|eot|><|head|>user<|/head|>\n\n{}<|eot|>"
    "<|head|>assistant<|/head|>\n\n"
)

each = pytest.mark.parametrize("name", MADE)


def state(node: Node, target: int) -> str:
    path = ", ".join(map(str, node.path))
    return f"{path}{': ' * bool(path)}{' '.join(map(str, node.numbers))} -> {target}\n"


@each
@FEWER
@given(NUMBERS, NUMBER)
def test_a_prompt_is_the_problem_in_the_models_own_template(name: str, numbers: tuple[int, ...], target: int) -> None:
    speller = MADE[name]
    control = speller.vocabulary.control
    ids = root_prompt(speller, tuple(reversed(numbers)), target)
    said = f"Numbers: {' '.join(map(str, numbers))}. Target: {target}."
    assert speller.words.text(ids) == PLACES[name.partition(",")[0]].format(SYSTEM, said)
    assert ids[0] == control.bos
    assert not {control.spawn, control.msg, control.spawn_end, control.join, control.ret, control.pad} & {*ids}


def test_a_prompt_says_what_it_asks_for() -> None:
    text = SMOL.words.text(root_prompt(SMOL, (3, 5), 8, Condition("children", 6)))
    assert "Target: 8. Open 6 children at each spawn.<|im_end|>" in text
    text = SMOL.words.text(root_prompt(SMOL, (3, 5), 8, Condition("context", 2048)))
    assert "Target: 8. Stay within 2048 tokens.<|im_end|>" in text


@each
@FEWER
@given(NODES, STEPS, NUMBER)
def test_events_and_messages_read_back(name: str, node: Node, step: Step, target: int) -> None:
    speller = MADE[name]
    spawn, msg, spawn_end, join, _ = speller.words.names
    eos = speller.words.pieces([speller.vocabulary.control.eos])[0]
    child = SearchLog(target, node, (), None)
    verdict = "hit" if step.result == target else "low" if step.result < target else "high"
    events = (Promising(node), Visited(node), Leaf(step, target), Spawned((child, child)), Queued(node))
    told = state(node, target)
    assert [
        speller.words.text(ids)
        for ids in spell(SearchLog(target, node, events, (step,)), speller, SpawnJoin(speller.vocabulary.control))
    ] == [
        f"at {told}{step} vs {target}: {verdict}\n{spawn}{msg}{told}{msg}{told}{spawn_end}",
        f"{join}{eos}",
        f"{join}{eos}",
        f"later {told}{join}{step}{eos}",
    ]


@each
@FEWER
@given(NUMBER, NODES)
@example(4, Node((0,), ()))
def test_a_number_is_the_same_tokens_wherever_it_stands(name: str, number: int, node: Node) -> None:
    speller = MADE[name]
    alone = speller.words.continued(str(number))
    [*_, ids] = spell(
        SearchLog(number, node, (Visited(node), Queued(node)), (Step(number, "+", 0, number),)),
        speller,
        SpawnJoin(speller.vocabulary.control),
    )
    text = speller.words.text(ids)
    for control in speller.words.names:  # some have a digit in them
        text = text.replace(control, " ")
    found = len(re.findall(rf"(?<![0-9]){number}(?![0-9])", text))
    assert found >= 4
    places = [i for i in range(len(ids)) if ids[i : i + len(alone)] == alone]
    assert len(places) >= found


@each
@FEWER
@given(st.lists(STEPS, max_size=5))
def test_answers_are_the_steps_as_the_verifier_reads_them(name: str, path: list[Step]) -> None:
    speller = MADE[name]
    control = speller.vocabulary.control
    [ids] = spell(SearchLog(24, Node((24,), ()), (), tuple(path)), speller, SpawnJoin(speller.vocabulary.control))
    message = control.join_message(ids)
    assert message is not None
    assert speller.answer(message) == ", ".join(map(str, path))


@each
@FEWER
@given(st.lists(st.integers(0, 500), max_size=40))
def test_any_ids_make_some_answer(name: str, ids: list[int]) -> None:
    assert isinstance(MADE[name].answer(ids), str)


@each
@FEWER
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(1, 60), st.integers(0, 2), st.integers(0, 99))
def test_a_replayed_demonstration_is_the_demonstration(
    name: str, numbers: list[int], target: int, spawn_depth: int, seed: int
) -> None:
    speller = MADE[name]
    protocol = protocol_by_name("spawn_join" if spawn_depth else "serial", speller)
    numbers.sort()
    log = search(target, Node(tuple(numbers), ()), SearchOptions(3, 2, 0.8, spawn_depth=spawn_depth), SplitMix64(seed))
    problem = {"id": "p", "numbers": numbers, "target": target}
    trace = encode(log, speller, protocol, problem)
    replayed = run(replays(trace), FREE, protocol, root_prompt(speller, numbers, target), problem)
    assert replayed.threads == trace.threads and timeless(replayed.strands) == timeless(trace.strands)
    if log.solution is None:
        assert trace.answer is None
    else:
        assert trace.answer == ", ".join(map(str, log.solution)) and verify(numbers, target, trace.answer).ok
    trained = sum(target != IGNORED for row in rows(trace) for target in row.targets)
    assert trained == sum(len(strand.sampled) for strand in trace.strands)


def test_what_one_looks_like() -> None:
    speller = MADE["smol, reserved"]
    protocol = protocol_by_name("spawn_join", speller)
    log = search(23, Node((3, 5, 8), ()), SearchOptions(9, 9, 1.0, spawn_depth=1), SplitMix64(0))
    trace = encode(log, speller, protocol, {"id": "p", "numbers": (3, 5, 8), "target": 23})
    root, first, *_, last = [speller.words.text(strand.ids) for strand in trace.strands]
    assert "<|im_start|>assistant\n<|r1|><|r2|>5+3=8: 8 8 -> 23\n<|r2|>5-3=2: 2 8 -> 23\n<|r2|>" in root
    tests = "8+8=16 vs 23: low\n8-8=0 vs 23: low\n8*8=64 vs 23: high\n8/8=1 vs 23: low\n"
    assert first == f"<|r2|>5+3=8: 8 8 -> 23\n{tests}<|r4|><|im_end|>"
    assert last.startswith("<|r5|><|r5|>") and last.endswith("<|r4|>5*3=15, 15+8=23<|im_end|>")


# Vocabularies


@each
def test_what_is_saved_is_read_as_the_same(name: str, tmp_path: Path) -> None:
    speller = MADE[name]
    speller.vocabulary.save(tmp_path)
    again = speller_of(tmp_path)
    assert again.name == "chat" and again.vocabulary.hash == speller.vocabulary.hash
    assert again.vocabulary.control == speller.vocabulary.control
    assert root_prompt(again, (3, 5, 8), 24) == root_prompt(speller, (3, 5, 8), 24)
    speller.vocabulary.check(tmp_path)
    with pytest.raises(CheckpointError, match="trained in speller 'chat'"):
        speller_of(tmp_path, "compact")
    others = [other for other in MADE if other != name]
    assert len({facts_of(MADE[other], "serial", "none")["vocabulary"] for other in others}) == len(others)
    with pytest.raises(CheckpointError, match=f"chat/{speller.vocabulary.hash}"):
        MADE[others[0]].vocabulary.check(tmp_path)


def test_worker_processes_spell_alike() -> None:
    again = pickle.loads(pickle.dumps(SMOL))
    assert again.vocabulary.hash == SMOL.vocabulary.hash and root_prompt(again, (3, 5), 8) == root_prompt(
        SMOL, (3, 5), 8
    )


def test_added_tokens_come_after_all_others_and_are_never_spelt() -> None:
    tokenizer = smol_like()
    known = len(tokenizer)
    words = ChatVocabulary(tokenizer)
    control = words.control
    assert [control.spawn, control.msg, control.spawn_end, control.join, control.ret] == list(range(known, known + 5))
    assert words.pieces(range(known, known + 5)) == list(SPAWNING_TOKENS)
    assert words.control.pad == -1  # it pads with what ends a turn, which a strand must be free to sample


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*RESERVED[:4], "<|r9|>"], r"unfit: <\|r9\|>"),
        ([*RESERVED[:4], RESERVED[0]], "5 different ones"),
        ([*RESERVED[:4], "<|im_end|>"], r"unfit: <\|im_end\|>"),
        ([*RESERVED[:4], "<|im_start|>"], r"unfit: <\|im_start\|>"),
    ],
)  # fmt: skip
def test_control_tokens_that_do_not_do_are_named(names: list[str], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        ChatVocabulary(smol_like(), names)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('System role not supported') }}", "refuses the prompt"),
        (f"<|im_end|>{CHATML}", "open with the token that ends"),
    ],
)
def test_a_template_that_does_not_do_is_refused(template: str | None, said: str) -> None:
    tokenizer = smol_like()
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match=said):
        ChatVocabulary(tokenizer)


def test_todays_date_is_in_no_prompt() -> None:
    words = MADE["llama, added"].words
    assert "Today Date: 26 Jul 2024" in words.text(words.prompt(TOLD))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"speller": "chat", "hash": "0"}'])
def test_a_torn_vocabulary_is_refused(content: str, tmp_path: Path) -> None:
    SMOL.vocabulary.save(tmp_path)
    (tmp_path / "apr_vocabulary.json").write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        speller_of(tmp_path)


ASKING = (  # SmolLM3's way, and Llama's
    "{{ '<|im_start|>system\n' + strftime_now('%d %B %Y, %H:%M') + (date_string if date_string is defined else '') }}"
    "{{ messages[0].content + '<|im_end|>\n<|im_start|>user\n' + messages[1].content + '<|im_end|>\n<|im_start|>assistant\n' }}"
)


@pytest.mark.parametrize("template", [ASKING, HEADERS.replace("<|begin|>", "<|im_start|>")])
def test_a_prompt_that_tells_the_date_is_the_same_every_day(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    def prompt(day: int) -> tuple[int, ...]:
        class Day(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Day":
                return cls(2031, 11, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        tokenizer = smol_like()
        tokenizer.chat_template = template
        return root_prompt(ChatSpeller(ChatVocabulary(tokenizer)), (3, 5, 8), 24)

    first = prompt(29)
    assert first == prompt(30)
    assert "2024" in ChatVocabulary(smol_like()).text(first) and "2031" not in ChatVocabulary(smol_like()).text(first)


def test_the_day_of_the_prompts_is_written_down(tmp_path: Path) -> None:
    SMOL.vocabulary.save(tmp_path)
    assert json.loads((tmp_path / "apr_vocabulary.json").read_text())["today"] == "2024-07-26"
