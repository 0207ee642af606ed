"""What `sees` reaches: closures of hand-made strands."""

from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
    closure_ids,
    closure_lengths,
)

A, B, C, D = (StrandId("r", n) for n in range(4))


def strand(id: StrandId, injected: str, sampled: str, *sees: tuple[StrandId, int]) -> Strand:
    """Tokens are characters, so that a closure reads as a word."""
    run = Injected(Origin.FORCED, tuple(map(ord, injected)))
    references = tuple(Reference(*reference) for reference in sees)
    return Strand(id, references, (), 0, (run,), tuple(map(ord, sampled)), EngineStop.STOP)


def word(strands: list[Strand], *sees: tuple[StrandId, int]) -> str:
    by_id = {s.id: s for s in strands}
    references = tuple(Reference(*reference) for reference in sees)
    ids = closure_ids(by_id, references)
    pairs = [(name, index) for name, length in closure_lengths(by_id, references).items() for index in range(length)]
    assert len(set(pairs)) == len(pairs) == sum(closure_lengths(by_id, references).values())
    assert ids == tuple(by_id[name].ids[index] for name, index in pairs)
    return "".join(map(chr, ids))


CHAIN = [strand(A, "ab", "cde"), strand(B, "f", "gh", (A, 3)), strand(C, "", "ij", (B, 2))]


def test_a_chain_of_references_is_a_path() -> None:
    assert word(CHAIN) == ""
    assert word(CHAIN, (A, 0)) == ""
    assert word(CHAIN, (A, 4)) == "abcd"  # injected and sampled tokens counted together
    assert word(CHAIN, (C, 1)) == "abcfgi"


def test_several_references_are_a_union_with_each_token_once() -> None:
    diamond = [*CHAIN[:2], strand(C, "", "ij", (A, 5)), strand(D, "k", "", (B, 3), (C, 1))]
    assert word(diamond, (B, 3), (C, 1)) == "abcdefghi"  # A as far as its longer view reaches
    assert word(diamond, (C, 1), (B, 3)) == "abcdeifgh"
    assert word(diamond, (D, 1)) == "abcdefghik"
    assert word(diamond, (A, 2), (A, 4)) == word(diamond, (A, 4), (A, 2)) == "abcd"


def test_ladders_of_double_references_are_read_in_linear_time() -> None:
    """Each strand sees the two before it: paths double at every rung, tokens do not."""
    rungs = [strand(A, "", "ab"), strand(B, "", "ab", (A, 2))]
    for n in range(2, 60):
        rungs.append(strand(StrandId("r", n), "", "ab", (StrandId("r", n - 2), 2), (StrandId("r", n - 1), 2)))
    assert word(rungs, (rungs[-1].id, 2)) == "ab" * 60


def test_a_chain_longer_than_the_call_stack() -> None:
    chain = [strand(A, "", "a")]
    for n in range(1, 5000):
        chain.append(strand(StrandId("r", n), "", "a", (StrandId("r", n - 1), 1)))
    by_id = {s.id: s for s in chain}
    assert len(closure_ids(by_id, (Reference(chain[-1].id, 1),))) == 5000


def test_names_and_keys() -> None:
    root = Thread("r", None, 0, (A,), StopReason.ANSWERED)
    trace = Trace({"id": "p7"}, "serial", 2, 5, (root,), (CHAIN[0],))
    assert str(StrandId("r.0.2", 1)) == "r.0.2#1"
    assert trace.key(CHAIN[0]) == (2, "p7", 5, "r", 0)
    assert trace.root is root and trace.by_id() == {A: CHAIN[0]}
    assert not trace.correct  # no outcome yet


def test_stop_reasons_are_in_documented_order() -> None:
    order = "answered no_answer returned cancelled context reach work span depth threads width seconds malformed engine_lost"
    assert [reason.value for reason in StopReason] == order.split()
