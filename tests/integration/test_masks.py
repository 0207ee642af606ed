"""Who sees whom, proved by perturbation: change a token of child 1 and look at everybody's logits, bit for bit."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apr.protocols.spawn_join import SpawnJoin
from apr.seeds import SplitMix64
from apr.threads.protocol import Continue
from apr.threads.trace import Reference, Strand, StrandId, Trace, closure_ids
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

SPELLER = CompactSpeller()
CONTROL = SPELLER.vocabulary.control
PROTOCOL = SpawnJoin(CONTROL)
ROOT, CHILD_1, CHILD_2, PARENT = StrandId("r", 0), StrandId("r.0", 0), StrandId("r.1", 0), StrandId("r", 1)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(SPELLER.vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Two children, of which the first solves it and returns a message."""
    log = search(23, Node((3, 5, 8), ()), SearchOptions(2, 9, spawn_depth=1), SplitMix64(0))
    made = encode(log, SPELLER, PROTOCOL, {"id": "p"})
    assert [strand.id for strand in made.strands] == [ROOT, CHILD_1, CHILD_2, PARENT]
    assert made.threads[1].message
    return made


def logits(model: LlamaForCausalLM, strands: dict[StrandId, Strand], strand: Strand) -> torch.Tensor:
    """What the model thinks at each token of `strand`, in its own context: (tokens of the strand, vocabulary)."""
    context = closure_ids(strands, strand.sees)
    with torch.inference_mode():
        out: torch.Tensor = model(torch.tensor([context + strand.ids])).logits[0]
    return out[len(context) :]


def perturbed(trace: Trace) -> Iterator[tuple[int, dict[StrandId, Strand]]]:
    """For each token that child 1 sampled, control tokens apart: its index, and the strands with it changed, the
    parent's injected messages being those that the changed child returns."""
    strands = trace.by_id()
    child = strands[CHILD_1]
    for index, token in enumerate(child.sampled):
        if token < 8:
            continue
        other = token + 1 if token + 1 < len(SPELLER.vocabulary) else token - 1
        changed = replace(child, sampled=(*child.sampled[:index], other, *child.sampled[index + 1 :]))
        message = CONTROL.join_message(changed.sampled)
        assert message is not None
        children = [replace(trace.threads[1], message=message), trace.threads[2]]
        plan = PROTOCOL.joined(strands[ROOT], children, {**strands, CHILD_1: changed})
        assert isinstance(plan, Continue)
        parent = replace(strands[PARENT], sees=plan.sees, injected=plan.inject, position=plan.position)
        yield index, {**strands, CHILD_1: changed, PARENT: parent}


def test_a_childs_tokens_reach_its_parent_by_message_only_and_its_sibling_never(
    model: LlamaForCausalLM, trace: Trace
) -> None:
    strands = trace.by_id()
    before = {id: logits(model, strands, strand) for id, strand in strands.items()}
    join = strands[CHILD_1].sampled.index(CONTROL.join)
    told = {True: 0, False: 0}
    for index, changed in perturbed(trace):
        after = {id: logits(model, changed, strand) for id, strand in changed.items()}
        assert torch.equal(after[CHILD_2], before[CHILD_2])
        assert torch.equal(after[ROOT], before[ROOT])
        at = len(strands[CHILD_1].injected_ids) + index
        assert torch.equal(after[CHILD_1][:at], before[CHILD_1][:at])
        assert not torch.equal(after[CHILD_1][at:], before[CHILD_1][at:])
        in_message = index > join
        assert torch.equal(after[PARENT], before[PARENT]) != in_message
        told[in_message] += 1
    assert min(told.values()) > 3  # both kinds were tried


@pytest.mark.parametrize("part", [0, 1, 5])
def test_a_parent_that_sees_a_part_of_a_child_changes_with_that_part(
    model: LlamaForCausalLM, trace: Trace, part: int
) -> None:
    """As in protocols whose parent goes on over its children's own tokens: several references, one cut short."""
    strands = trace.by_id()
    injected = len(strands[CHILD_1].injected_ids)
    length = injected + part
    sees = (*strands[PARENT].sees, Reference(CHILD_1, length), Reference(CHILD_2, 5))
    seeing = replace(strands[PARENT], sees=sees, injected=())
    before = logits(model, {**strands, PARENT: seeing}, seeing)
    seen = 0
    for index, changed in perturbed(trace):
        at = injected + index
        same = torch.equal(logits(model, {**changed, PARENT: seeing}, seeing), before)
        assert same != (at < length)
        seen += not same
    assert seen == part
