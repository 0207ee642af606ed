"""SFT on packed blocks is SFT on one row per strand: the same loss, the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_shared import model

from apr.protocols import PROTOCOLS, protocol_by_name
from apr.seeds import SplitMix64
from apr.sft.batches import collate
from apr.sft.rows import IGNORED, pointers, rows
from apr.threads.trace import Strand, StrandId, Trace, closure_lengths
from envs.countdown.compact import CompactSpeller
from envs.countdown.log import Node
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

SPELLER = CompactSpeller()


def traces(protocol: str) -> list[Trace]:
    """Nested, spawning once, and causal."""
    found = []
    for seed, depth in enumerate((2, 1, 0) if protocol != "serial" else (0, 0)):
        log = search(97, Node((3, 5, 7, 11), ()), SearchOptions(2, 2, spawn_depth=depth), SplitMix64(seed))
        problem = {"id": "p", "numbers": [3, 5, 7, 11], "target": 97}
        found.append(encode(log, SPELLER, protocol_by_name(protocol, SPELLER), problem))
    return found


def packed_loss(network: Any, made: list[Trace]) -> torch.Tensor:
    batch = collate(
        [
            {"input_ids": list(row.block.ids), "targets": row.targets, "segments": pointers(row.block)}
            for trace in made
            for row in rows(trace)
        ],
        pad=0,
    )
    logits = network(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]
    ).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["shift_labels"].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def loss_of_strand(network: Any, strands: dict[StrandId, Strand], strand: Strand) -> torch.Tensor:
    """Of one row that holds all that the strand sees, and the strand: who sees whom is worked out token by token."""
    parts = {**closure_lengths(strands, strand.sees), strand.id: len(strand.ids)}
    tokens = [(strands[id], index) for id, length in parts.items() for index in range(length)]
    ids = [one.ids[index] for one, index in tokens]
    positions = [one.position + index for one, index in tokens]
    seen = {id: closure_lengths(strands, strands[id].sees) for id in parts}
    mask = torch.tensor(
        [
            [
                (other.id == one.id and place <= index)
                or (other.id != one.id and place < seen[one.id].get(other.id, 0))
                for other, place in tokens
            ]
            for one, index in tokens
        ]
    )
    logits = network(
        input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=mask[None, None]
    ).logits[0]
    first = len(ids) - len(strand.sampled)
    return torch.nn.functional.cross_entropy(logits[first - 1 : -1], torch.tensor(ids[first:]), reduction="sum")


@pytest.mark.parametrize("protocol", ["serial", "spawn_join", "multiverse", "aspd", "pasta"])
def test_packed_rows_train_as_one_row_per_strand(protocol: str) -> None:
    made = traces(protocol)
    network = model("Llama", "sdpa", vocabulary=len(SPELLER.vocabulary))
    packed = packed_loss(network, made)
    packed.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    total = torch.zeros(())
    for trace in made:
        strands = trace.by_id()
        for strand in trace.strands:
            loss = loss_of_strand(network, strands, strand)
            loss.backward()
            total += loss.detach()
    assert float(packed.detach()) == pytest.approx(float(total), rel=1e-6)
    for name, parameter in network.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert float((parameter.grad - gradients[name]).abs().max()) <= 1e-5 * scale, name


def test_each_token_of_a_trace_is_forwarded_once() -> None:
    for protocol in PROTOCOLS:
        for trace in traces(protocol):
            whole = sum(len(strand.ids) for strand in trace.strands)
            assert sum(len(row.block.ids) for row in rows(trace)) == whole
