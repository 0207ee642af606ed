"""`apr data generate`: which problems, which teachers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from apr.config.base import DialectName, ProtocolName, Strict
from apr.idle import Idle
from envs.countdown.env import CountdownSpec
from solvers.search import Heuristic, Order


class Rejection(Strict):
    """Rejection sampling: draw again (beams and all) until a demonstration is solved within `context` tokens; after
    `tries` without one the problem is left out."""

    tries: int = Field(default=10, ge=1, description="draws per problem before it is left out")
    context: int = Field(default=4096, ge=1, description="tokens that a demonstration may have")


class SolverConfig(Strict):
    """A teacher: a solver and its options (see `solvers.search`), and what its demonstrations are conditioned on."""

    protocol: ProtocolName = Field(description="how its demonstrations are written: serially, or with spawns and joins")
    beams: list[int] = Field(default=[5], min_length=1, description="root beams, one drawn for each demonstration")
    child_beam_max: int = Field(default=15, ge=1, description="child beams are drawn from root beam to this")
    promising_share: float = Field(
        default=1.0, ge=0, le=1, description="share of a node's children that are searched as child threads"
    )
    promising: Literal["per_child", "per_node"] = Field(
        default="per_child", description="whether the share is drawn for each child, or once per node"
    )
    child_promising_share: float | None = Field(default=None, ge=0, le=1, description="as promising_share if not given")
    heuristic: Heuristic = Field(default="numbers_to_factors", description="what orders a beam")
    order: Order = Field(default="canonical", description="order of a node's children")
    prune: Literal["beam", "target"] = Field(default="beam", description="target: keep what is no farther than it")
    duplicates: bool = Field(
        default=False, description="keep children that differ only in their step, as the code does"
    )
    spawn_depth: int = Field(default=0, ge=0, description="levels of spawns; 0 for a serial teacher")
    unfold: bool = Field(default=False, description="child threads' searches written serially: the equal teacher")
    value_cap: int | None = Field(default=None, ge=1, description="largest intermediate result")
    condition: Literal["none", "context", "children"] = Field(
        default="none", description="what its prompts ask for: the context, or the children of a spawn"
    )
    context_bin: int = Field(default=512, ge=1, description="context conditions are multiples of it")
    rejection: Rejection | None = Field(
        default=None, description="draw demonstrations again until they are solved (rejection sampling)"
    )

    def idle(self) -> Iterator[Idle]:
        if self.condition != "context":
            yield Idle("context_bin", "condition", "set condition=context as well, or leave them out")
        if self.spawn_depth == 0:
            yield Idle("child_promising_share", "spawn_depth", "set spawn_depth=1 as well, or leave them out")

    @model_validator(mode="after")
    def _spawns(self) -> SolverConfig:
        if (self.protocol == "serial") != (self.spawn_depth == 0 or self.unfold):
            raise ValueError(
                "spawn_depth must be at least 1 for spawn_join, and 0 for the serial protocol unless unfold is set"
            )
        if self.unfold and not self.spawn_depth:
            raise ValueError("unfold writes child threads serially: it needs spawn_depth of at least 1")
        if self.condition == "children" and self.protocol == "serial":
            raise ValueError("condition children needs a protocol that spawns")
        if min(self.beams) < 1:
            raise ValueError("beams must be at least 1")
        return self


class DataConfig(Strict):
    """Problems by split, and demonstrations from each teacher."""

    seed: int = Field(default=0, description="of the problems and the demonstrations")
    problems: CountdownSpec = CountdownSpec()
    train: int = Field(default=5000, ge=1, description="problems")
    validation: int = Field(default=200, ge=1, description="problems held out to watch a training")
    test: int = Field(default=1000, ge=1, description="problems held out for evaluation")
    dialect: DialectName = Field(default="compact", description="how traces are spelt as tokens")
    tokenizer: Path | None = Field(
        default=None, description="of dialect chat: the model's folder or GGUF file, or PACKAGE:FILE"
    )
    control_tokens: list[str] | None = Field(
        default=None, min_length=5, max_length=5,
        description="of dialect chat: the tokenizer's own for spawn, msg, </spawn>, join, ret; if none, some are added",
    )  # fmt: skip
    demonstrations_per_problem: int = Field(default=1, ge=1, description="of each teacher")
    solvers: dict[str, SolverConfig] = Field(description="teachers by name")
    shard_rows: int = Field(default=10_000, ge=1, description="problems in a file; all but the last hold so many")
    workers: int | None = Field(default=None, ge=1, description="processes; changes no result; default: all cores")
    out: Path = Field(default=Path("runs/data"), description="folder to write")

    @model_validator(mode="after")
    def _names(self) -> DataConfig:
        for name in self.solvers:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "problems":
                raise ValueError(
                    f"solvers: {name!r} cannot name a part of a data set: letters, digits and _, not `problems`"
                )
        return self

    @model_validator(mode="after")
    def _tokenizer(self) -> DataConfig:
        if (self.dialect == "chat") != (self.tokenizer is not None):
            raise ValueError("dialect chat needs `tokenizer`, that of the model to be trained; others have their own")
        if self.control_tokens is not None and self.tokenizer is None:
            raise ValueError("control_tokens are those of a `tokenizer`, which only dialect chat has")
        return self
