"""Views by pointers give what walking every closure gives, on random DAGs of strands and on the shapes of protocols."""

from __future__ import annotations

from random import Random

from hypothesis import event, given, settings
from hypothesis import strategies as st

from apr.threads.costs import closure_tokens
from apr.threads.trace import EngineStop, Injected, Origin, Reference, Strand, StrandId, closure_lengths
from apr.threads.views import Views


def strand(thread: str, number: int, sees: tuple[Reference, ...], injected: int, sampled: int) -> Strand:
    run = Injected(Origin.FORCED, tuple(range(injected)))
    return Strand(StrandId(thread, number), sees, (), 0, (run,), tuple(range(100, 100 + sampled)), EngineStop.STOP)


def random_strands(rng: Random) -> list[Strand]:
    """Strands that see any part of any earlier ones, empty parts and one strand twice included."""
    made: list[Strand] = []
    near = rng.choice([2, 4, 100])  # how far back references reach
    for number in range(rng.randint(1, 14)):
        recent = made[-near:]
        references = [rng.choice(recent) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))] if recent else []
        sees = tuple(Reference(old.id, rng.randint(0, len(old.ids))) for old in references)
        made.append(strand("r", number, sees, rng.randint(0, 2), rng.randint(0, 3)))
    return made


def nested_strands(rng: Random) -> list[Strand]:
    """Threads that fork, go on beside their children, and join over all or some of them, nested three deep."""
    made: list[Strand] = []

    def part(old: Strand) -> Reference:
        return Reference(old.id, len(old.ids) if rng.random() < 0.8 else rng.randint(0, len(old.ids)))

    def thread(name: str, sees: tuple[Reference, ...], depth: int) -> Strand:
        last = strand(name, 0, sees, rng.randint(0, 2), rng.randint(0, 3))
        made.append(last)
        spawned = 0
        open_children: list[Strand] = []
        for number in range(1, rng.randint(1, 5)):
            if depth and rng.random() < 0.5:
                for _ in range(rng.randint(1, 3)):
                    open_children.append(thread(f"{name}.{spawned}", (part(last),), depth - 1))
                    spawned += 1
            joined = [child for child in open_children if rng.random() < 0.7]
            open_children = [child for child in open_children if child not in joined]
            over = [last, *joined] if rng.random() < 0.5 or not joined else joined
            last = strand(name, number, tuple(map(part, over)), rng.randint(0, 2), rng.randint(0, 3))
            made.append(last)
        return last

    thread("r", (), 3)
    return made


STRANDS = st.randoms(use_true_random=True).flatmap(
    lambda rng: st.sampled_from([random_strands, nested_strands]).map(lambda make: make(rng))
)


@settings(max_examples=600)
@given(STRANDS)
def test_closures_are_counted_as_if_each_was_walked(strands: list[Strand]) -> None:
    by_id = {one.id: one for one in strands}
    expected = [sum(closure_lengths(by_id, one.sees).values()) for one in strands]
    assert closure_tokens(tuple(strands)) == expected
    event(f"several references: {min(3, sum(len(one.sees) > 1 for one in strands))}")


@settings(max_examples=600)
@given(STRANDS)
def test_the_last_of_a_view_is_the_last_of_its_closure(strands: list[Strand]) -> None:
    by_id = {one.id: one for one in strands}
    numbers = {one.id: number for number, one in enumerate(strands)}
    views = Views()
    for one in strands:
        last = views.add([(numbers[seen], length) for seen, length in one.sees])
        closure = [(numbers[seen], length) for seen, length in closure_lengths(by_id, one.sees).items()]
        assert last == (closure[-1] if closure else None)


def steps(strands: list[Strand]) -> int:
    """Strands that `Views` touches while it joins."""
    views, count = Views(), 0
    numbers: dict[StrandId, int] = {}

    class Counted(list):  # type: ignore[type-arg]
        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            return super().__getitem__(at)

    views._base = Counted()
    for number, one in enumerate(strands):
        views.add([(numbers[seen], length) for seen, length in one.sees])
        numbers[one.id] = number

    return count


def shared_joins(size: int) -> list[Strand]:
    made = [strand("r", 0, (), 1, 3)]
    for number in range(size):
        whole = Reference(made[-1].id, 4)
        children = [strand(f"r.{number}{letter}", 0, (whole,), 1, 3) for letter in "ab"]
        made += children
        made.append(strand("r", number + 1, tuple(Reference(child.id, 4) for child in children), 1, 3))
    return made


def joins_of_early_children(size: int) -> list[Strand]:
    """All children start at once and are joined one by one."""
    first = strand("r", 0, (), 1, 3)
    children = [strand(f"r.{number}", 0, (Reference(first.id, 4),), 1, 3) for number in range(size)]
    made = [first, *children]
    for number, child in enumerate(children):
        last = first if number == 0 else made[-1]
        made.append(strand("r", number + 1, (Reference(last.id, 4), Reference(child.id, 4)), 1, 3))
    return made


def shared_depth(size: int) -> list[Strand]:
    made: list[Strand] = []
    opened = []
    sees: tuple[Reference, ...] = ()
    name = "r"
    for _ in range(size):
        first = strand(name, 0, sees, 1, 3)
        sees = (Reference(first.id, 4),)
        leaf = strand(f"{name}.0", 0, sees, 1, 3)
        made += [first, leaf]
        opened.append((name, leaf))
        name += ".1"
    made.append(strand(name, 0, sees, 1, 3))
    for name, leaf in reversed(opened):
        made.append(strand(name, 1, (Reference(leaf.id, 4), Reference(made[-1].id, 4)), 1, 3))
    return made


def test_joins_that_nest_or_follow_one_another_are_counted_in_linear_time() -> None:
    for shape in (shared_joins, joins_of_early_children, shared_depth):
        small, large = steps(shape(50)), steps(shape(100))
        assert large < 2.1 * small, shape
