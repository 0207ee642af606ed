"""Multiverse (arXiv 2506.09991): a plan, paths beside each other, and a conclusion over all of them, in one sequence.

    <Parallel> <Goal> <Outline> 1 : title </Outline> <Outline> 2 : title </Outline> </Goal>      a path per outline
    <Path> 1 : ... </Path>                             each path, which sees all before it and no other path
    <Conclusion> ... </Conclusion> </Parallel> ...     the parent goes on, and sees all paths

`<Path> 1 :` and `<Conclusion>` are forced. The root's answer is `<join> answer <eos>`. Paths may open blocks in turn.

Positions: all paths start where the plan ends; the conclusion stands after the longest of them. With a prompt of 8 tokens and
a plan of 48, of which `</Goal>` is the last, and three paths of 3 forced and 25 sampled tokens:

    r#0    0 to 55     sees nothing
    r.k#0  56 to 83    sees r#0
    r#1    84, ...     sees r#0, r.0#0, r.1#0, r.2#0

The same rule holds in training and in decoding. (The released trainer and engine differ by one position on each path, and by
two on each conclusion.) Line breaks between tags, which the released engine forces, are left out. A path that does not end
with `</Path>` is malformed, and its parent does not see it; nor does a plan without an outline end a run, or lose a request.
"""

from collections.abc import Iterator, Mapping, Sequence

from apr.protocols.grammar import MALFORMED, Block, Tagged, blocks, label, outlined, outlines, returned, whole
from apr.scripts.script import Answer, Pieces, Say, Script
from apr.threads.protocol import Await, Continue, Decision, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Strand, StrandId, Thread
from apr.tokens.control import MULTIVERSE
from apr.tokens.speller import Speller


class Multiverse(Tagged):
    """Stateless. Its parent joins over its children's own keys and values, so only an engine of views `dag` serves it."""

    name = "multiverse"
    shares = True
    nests = True
    purpose = (
        "It plans paths, writes them beside each other and concludes over all of them, as in\n"
        "Multiverse ([arXiv 2506.09991](https://arxiv.org/abs/2506.09991))."
    )
    grammar = """A thread samples its search, and opens paths by a plan:

```
<Parallel> <Goal> (<Outline> N : TITLE </Outline>)+ </Goal>     a path for each outline
<Path> N : ... </Path>                                          each path; `<Path> N :` is forced
<Conclusion> ... </Conclusion> </Parallel> ...                  the thread goes on; `<Conclusion>` is forced
```

A path sees all before it and no other path, and stands where the plan ends; the conclusion sees all paths, and stands after the
longest. The root ends with `join`, its answer and `eos`. A server of ordinary causal requests cannot serve this: the conclusion
reads the keys and values that each path has made. `engine.kind=shared` of this project does."""

    def __init__(self, speller: Speller) -> None:
        super().__init__(speller)
        (
            _, _, self.parallel, self.parallel_end, self.goal, self.goal_end, self.outline, self.outline_end, self.path,
            self.path_end, self.conclusion, self.conclusion_end,
        ) = speller.vocabulary.tags(MULTIVERSE)  # fmt: skip
        self._stop_ids = (self.goal_end, self.path_end, self.control.eos)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if strand.injected_ids[-1:] == (self.conclusion,):
            end = said.index(self.conclusion_end) if self.conclusion_end in said else len(said)
            if not self.words.alone(said[:end]) or said[end : end + 2] != (self.conclusion_end, self.parallel_end):
                return MALFORMED
            said = said[end + 2 :]
        if said[-1:] == (self.goal_end,):
            tags = (self.parallel, self.goal, self.outline, self.outline_end)
            count = outlines(said, tags, self.speller, self.words)
            return (
                Spawn(tuple(self._path(strand, n) for n in range(1, count + 1)), then=Await()) if count else MALFORMED
            )
        if strand.id.thread == ROOT:
            return self.words.answered(said)
        return Finish(None) if said[-1:] == (self.path_end,) and self.words.alone(said[:-1]) else MALFORMED

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        seen = (last, *returned(children, strands))
        position = max(strand.end for strand in seen)
        return Continue(
            (Injected(Origin.FORCED, (self.conclusion,)),), tuple(map(whole, seen)), position, self._stop_ids
        )

    def _strands(self, script: Script, root: bool = True) -> Iterator[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids. A path's result is not said: its parent sees the path."""
        out: list[str | int] = []
        answer: Pieces = ()
        for piece in blocks(script, self.name):
            match piece:
                case Say(pieces):
                    out += pieces
                case Answer(pieces):
                    answer = pieces
                case Block(branches, conclusion):
                    plan = outlined(branches, self.outline, self.outline_end)
                    yield [*out, self.parallel, self.goal, *plan, self.goal_end]
                    for branch in branches:
                        yield from self._strands(branch.script, root=False)
                    out = [*conclusion, self.conclusion_end, self.parallel_end]
        yield [*out, self.control.join, *answer, self.control.eos] if root else [*out, self.path_end]

    def _path(self, parent: Strand, number: int) -> Continue:
        forced = Injected(Origin.FORCED, (self.path, *self.speller.ids(label(number))))
        return Continue((forced,), (whole(parent),), parent.end, self._stop_ids)
