"""What Countdown's teachers can be told: a solver and its options (`solvers.search`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apr.idle import Idle
from envs.base import TeacherOptions
from solvers.search import Heuristic, Order

NEVER_JOIN = ("apar", "skeleton")  # protocols whose parents do not go on after their children


class Rejection(BaseModel):
    """Rejection sampling: draw again (beams and all) until a demonstration is solved within `context` tokens; after
    `tries` without one the problem is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tries: int = Field(default=10, ge=1, description="draws per problem before it is left out")
    context: int = Field(default=4096, ge=1, description="tokens that a demonstration may have")


class SearchTeacher(TeacherOptions):
    """A teacher: a solver and its options (see `solvers.search`), and what its demonstrations are conditioned on."""

    model_config = ConfigDict(extra="forbid")

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
    wave: int | None = Field(
        default=None,
        ge=1,
        description="children of one spawn; more follow if none of these succeeds. Not given: all at once",
    )
    unfold: bool = Field(default=False, description="child threads' searches written serially: the equal teacher")
    value_cap: int | None = Field(default=None, ge=1, description="largest intermediate result")
    context_bin: int = Field(default=512, ge=1, description="context conditions are multiples of it")
    rejection: Rejection | None = Field(
        default=None, description="draw demonstrations again until they are solved (rejection sampling)"
    )

    def idle(self) -> Iterator[Idle]:
        if self.condition != "context":
            yield Idle("context_bin", "condition", "set condition=context as well, or leave them out")
        if self.spawn_depth == 0:
            for option in ("child_promising_share", "wave"):
                yield Idle(option, "spawn_depth", "set spawn_depth=1 as well, or leave them out")

    @model_validator(mode="after")
    def _spawns(self) -> SearchTeacher:
        if self.scripts is not None:
            return self
        if (self.protocol == "serial") != (self.spawn_depth == 0 or self.unfold):
            raise ValueError(
                "spawn_depth must be at least 1 for spawn_join, and 0 for the serial protocol unless unfold is set"
            )
        if self.unfold and not self.spawn_depth:
            raise ValueError("unfold writes child threads serially: it needs spawn_depth of at least 1")
        if self.condition == "children" and self.protocol == "serial":
            raise ValueError("condition children needs a protocol that spawns")
        if self.wave is not None and self.protocol in NEVER_JOIN:
            raise ValueError(
                f"wave needs a parent that goes on after its children, which {self.protocol} has not: leave it out"
            )
        if min(self.beams) < 1:
            raise ValueError("beams must be at least 1")
        return self
