"""ASPD (arXiv 2508.08895): titles, a branch for each, and the parent goes on over all of them at its flat index.

    <|title|> title 1 <|/title|> <|title|> title 2 <|/title|> <|para|>      a branch per title
    <|branch|> title 1 : ... <|/branch|>                each branch, which sees all before it and no other branch
    <|/para|> ...                                       the parent goes on, and sees all branches

`<|branch|> title :` and `<|/para|>` are forced; the title is a copy of the parent's. The root's answer is `<join> answer
<eos>`. Branches do not nest. Of equal titles the first counts.

Positions (Same-Sequential, equation 4): all branches start where the titles end; the parent goes on where it would stand if the
branches had been written one after the other. With a prompt of 8 tokens, 40 of titles and three branches of 38 tokens each:

    r#0    0 to 47       sees nothing
    r.k#0  48 to 85      sees r#0
    r#1    162, ...      sees r#0, r.0#0, r.1#0, r.2#0;  162 = 48 + 3 * 38

So positions reach as far as serial text would. (The released engine never feeds `<|para|>`, starts branches one position early
and feeds the last token of each twice; here one rule holds in training and decoding.) A branch that does not end with
`<|/branch|>` is malformed, and its parent does not see it.
"""

from collections.abc import Iterator, Mapping, Sequence

from apr.protocols.grammar import MALFORMED, Block, Said, Tagged, blocks, returned, whole, words_of
from apr.scripts.script import Answer, Pieces, Say, Script
from apr.threads.protocol import Await, Continue, Decision, Finish, Spawn
from apr.threads.trace import ROOT, Injected, Origin, Strand, StrandId, Thread
from apr.tokens.control import ASPD
from apr.tokens.speller import Speller


class Aspd(Tagged):
    """Stateless; served by an engine of views `dag`."""

    name = "aspd"
    shares = True
    nests = False
    purpose = (
        "It writes titles, then a branch for each beside the others, and goes on over all of them, as in\n"
        "ASPD ([arXiv 2508.08895](https://arxiv.org/abs/2508.08895))."
    )
    grammar = """The root samples its search, and opens branches by their titles:

```
(<|title|> TITLE <|/title|>)+ <|para|>        a branch for each title
<|branch|> TITLE : ... <|/branch|>            each branch; `<|branch|> TITLE :` is forced
<|/para|> ...                                 the root goes on; `<|/para|>` is forced
```

A branch sees all before it and no other branch, and stands where the titles end; the root sees all branches, and stands where
it would if they had been written one after the other. It ends with `join`, its answer and `eos`. A server of ordinary causal
requests cannot serve this; `engine.kind=shared` of this project does."""

    def __init__(self, speller: Speller) -> None:
        super().__init__(speller)
        self.branch, self.branch_end, self.title, self.title_end, self.para, self.para_end = speller.vocabulary.tags(
            ASPD
        )
        self._stop_ids = (self.para, self.branch_end, self.control.eos)

    def ended(self, strand: Strand, strands: Mapping[StrandId, Strand]) -> Decision:
        said = strand.sampled
        if strand.id.thread != ROOT:
            return Finish(None) if said[-1:] == (self.branch_end,) and self.words.alone(said[:-1]) else MALFORMED
        if said[-1:] != (self.para,):
            return self.words.answered(said)
        titles = self._titles(said)
        return Spawn(tuple(self._child(strand, title) for title in titles), then=Await()) if titles else MALFORMED

    def joined(self, last: Strand, children: Sequence[Thread], strands: Mapping[StrandId, Strand]) -> Decision:
        branches = returned(children, strands)
        position = last.end + sum(len(branch.ids) for branch in branches)
        sees = tuple(map(whole, (last, *branches)))
        return Continue((Injected(Origin.FORCED, (self.para_end,)),), sees, position, self._stop_ids)

    def _strands(self, script: Script) -> Iterator[Sequence[str | int]]:
        """The pieces of each strand, control tokens as their ids. A branch's result is not said: its parent sees the branch."""
        out: list[str | int] = []
        answer: Pieces = ()
        for piece in blocks(script, self.name):
            match piece:
                case Say(pieces):
                    out += pieces
                case Answer(pieces):
                    answer = pieces
                case Block(branches):
                    titles = [branch.title or branch.message for branch in branches]
                    if len(set(titles)) < len(titles):
                        raise ValueError("aspd opens one branch for each title: two branches of a fork have the same")
                    for title in titles:
                        out += (self.title, *title, self.title_end)
                    yield [*out, self.para]
                    for branch in branches:
                        yield [*words_of(branch, self.name), self.branch_end]
                    out = []
        yield [*out, self.control.join, *answer, self.control.eos]

    def _titles(self, said: Said) -> list[Said]:
        """The titles that end `said`, each once; none if they are malformed."""
        start = said.index(self.title) if self.title in said else len(said)
        if not self.words.alone(said[:start]):
            return []
        rest, titles = said[start:-1], list[Said]()
        while rest:
            end = rest.index(self.title_end) if self.title_end in rest else 0
            if rest[0] != self.title or end < 2 or not self.words.alone(rest[1:end]):
                return []
            titles.append(rest[1:end])
            rest = rest[end + 1 :]
        return list(dict.fromkeys(titles))

    def _child(self, parent: Strand, title: Said) -> Continue:
        inject = (
            Injected(Origin.FORCED, (self.branch,)),
            Injected(Origin.COPY, title),
            Injected(Origin.FORCED, self.speller.ids((":",))),
        )
        return Continue(inject, (whole(parent),), parent.end, self._stop_ids)
