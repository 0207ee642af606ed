"""The chat dialect of Countdown: plain lines in a pretrained chat model's own vocabulary.

    prompt    the model's own template: how to search (`SYSTEM`), then `Numbers: 3 5 8. Target: 24.`
    visit     at 3+5=8: 8 8 -> 24             steps so far, numbers left, target; without steps `at 3 5 8 -> 24`
    queue     later 3+5=8: 8 8 -> 24          the same, kept for later
    test      8+8=16 vs 24: low               a last step, its value, the target, how they compare (low, hit, high)
    message   3+5=8: 8 8 -> 24                to a child: a state, as in a visit
    answer    3+5=8, 3*8=24                   steps in order
    condition `Open 6 children at each spawn.` or `Stay within 2048 tokens.` at the end of what the user says

Every line but the answer's ends with a line end. What a strand samples is spelt piece by piece, a piece being a number,
an operator or a word with the spaces around it: a number is the same tokens wherever it stands, and the tokens, not
the text, are what is stored, sampled and trained. Spawn and join are single control tokens (`apr.tokens.chat_vocabulary`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.control import ControlTokens
from apr.tokens.dialect import Condition
from apr.tokens.log import Node, Promising, Queued, SearchLog, Spawned, Step, Tested, Visited
from apr.tokens.vocabulary import Vocabulary

SYSTEM = (
    "Reach the target with + - * /, using every number exactly once. Write your search, compare results with the target, "
    "hand states to children if that helps, and end with the steps or with nothing."
)
CONDITIONS = {"children": "Open {} children at each spawn.", "context": "Stay within {} tokens."}


class ChatDialect:
    """Token ids for problems, search events, messages and answers. Exact, and total on their inputs."""

    name = "chat"

    def __init__(self, vocabulary: ChatVocabulary) -> None:
        self.words = vocabulary
        self.vocabulary: Vocabulary = vocabulary
        self._spelt: dict[str, tuple[int, ...]] = {}

    def prompt(self, numbers: Sequence[int], target: int, condition: Condition | None = None) -> tuple[int, ...]:
        """The problem in the model's own template, numbers in ascending order."""
        said = f"Numbers: {' '.join(map(str, sorted(numbers)))}. Target: {target}."
        if condition is not None:
            said += f" {CONDITIONS[condition.kind].format(condition.value)}"
        return self.words.prompt(SYSTEM, said)

    def spell(self, log: SearchLog) -> list[tuple[int, ...]]:
        """Each strand's sampled tokens, those of children after the strand that spawned them."""
        return [self._ids(pieces) for pieces in _strands(log, self.words.control)]

    def answer(self, ids: Iterable[int]) -> str:
        """A join message as the verifier reads it: `"8-6=2, 4+1=5, 2*5=10"`. Whatever the ids, some text."""
        return self.words.text(ids).strip()

    def _ids(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        """Pieces of text spelt one by one, and control tokens as they are."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
                continue
            if piece not in self._spelt:
                self._spelt[piece] = self.words.continued(piece)
            ids += self._spelt[piece]
        return tuple(ids)


def _strands(log: SearchLog, control: ControlTokens) -> Iterator[list[str | int]]:
    out: list[str | int] = []
    for event in log.events:
        match event:
            case Visited(node):
                out += ("at ", *_state(node, log.target))
            case Queued(node):
                out += ("later ", *_state(node, log.target))
            case Promising():
                pass  # said where it is visited or spawned
            case Tested(step, goal):
                verdict = "hit" if step.result == goal else "low" if step.result < goal else "high"
                out += (*_step(step), " vs ", str(goal), f": {verdict}\n")
            case Spawned(children):
                out.append(control.spawn)
                for child in children:
                    out += (control.msg, *_state(child.start, child.target))
                yield [*out, control.spawn_end]
                for child in children:
                    yield from _strands(child, control)
                out = []
    yield [*out, control.join, *_path(log.solution or ()), control.eos]


def _step(step: Step) -> Iterator[str]:
    yield from (str(step.a), step.op, str(step.b), "=", str(step.result))


def _path(path: Sequence[Step]) -> Iterator[str]:
    for i, step in enumerate(path):
        if i:
            yield ", "
        yield from _step(step)


def _state(node: Node, target: int) -> Iterator[str]:
    yield from _path(node.path)
    if node.path:
        yield ": "
    for i, n in enumerate(node.numbers):
        if i:
            yield " "
        yield str(n)
    yield from (" -> ", str(target), "\n")
