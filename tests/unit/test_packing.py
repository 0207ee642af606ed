"""The plan of passes is best fit and longest first, as its definition says it row by row."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from apr.threads.layout import causal
from rl.packing import Row, pack, plan
from rl.samples import Sample


def sample(length: int) -> Sample:
    return Sample(causal(range(length)), [], [], [], [], [], [], [], [])


def length_of(row: Row) -> int:
    return sum(len(one.block.ids) for one in row)


def packed_by_definition(batch: Sequence[Sample], row_tokens: int) -> list[Row]:
    rows: list[Row] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), ascending
    for number in sorted(range(len(batch)), key=lambda number: (-len(batch[number].block.ids), number)):
        length = len(batch[number].block.ids)
        place = bisect.bisect_left(room, (length, -1))
        if place < len(room):
            free, row = room.pop(place)
            rows[row].append(batch[number])
        else:
            free, row = max(row_tokens, length), len(rows)
            rows.append([batch[number]])
        bisect.insort(room, (free - length, row))
    return rows


def planned_by_definition(
    batch: Sequence[Sample], row_tokens: int, tokens_per_pass: int, ranks: int
) -> list[list[list[Row]]]:
    passes: list[list[Row]] = []
    for row in sorted(packed_by_definition(batch, row_tokens), key=length_of, reverse=True):
        if passes and (len(passes[-1]) + 1) * length_of(passes[-1][0]) <= tokens_per_pass:
            passes[-1].append(row)
        else:
            passes.append([row])
    shares: list[list[list[Row]]] = [[] for _ in range(ranks)]
    for rows in passes:
        min(shares, key=lambda share: sum(len(one) * length_of(one[0]) for one in share)).append(rows)
    most = max(map(len, shares))
    return [[*share, *([[]] * (most - len(share)))] for share in shares]


@given(st.lists(st.integers(0, 90), max_size=60), st.integers(16, 64), st.integers(64, 200), st.integers(1, 4))
def test_rows_and_passes_are_those_of_the_definition(
    lengths: list[int], row_tokens: int, tokens_per_pass: int, ranks: int
) -> None:
    batch = [sample(length) for length in lengths]
    numbers = {id(one): number for number, one in enumerate(batch)}

    def named(rows: list[Row]) -> list[list[int]]:
        return [[numbers[id(one)] for one in row] for row in rows]

    assert named(pack(batch, row_tokens)) == named(packed_by_definition(batch, row_tokens))
    made = plan(batch, row_tokens, tokens_per_pass, ranks)
    expected = planned_by_definition(batch, row_tokens, tokens_per_pass, ranks)
    assert [[named(rows) for rows in share] for share in made] == [
        [named(rows) for rows in share] for share in expected
    ]
