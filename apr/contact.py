"""Contact between training and test: what a checkpoint was trained on, as its card says, and what the problems of an
evaluation share with that.

    "trained_on": [{"stage": "sft", "split": "train", "hash": "9f0c...", "env": {"name": "countdown", "numbers": 3, ...}}]

`hash` is the content hash of the training problems, `env` the environment that drew them with its options: they hold the
split rule and its seed. So contact can be counted where the training data are not at hand. What a card does not say is
unknown, never none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from apr.checkpoints.card import Card, TrainingProblems
from apr.config import EnvConfig
from apr.data.store import has_problems, problems_hash, read_problems
from apr.errors import CheckpointError
from envs.base import Env, splits_of

TRAIN = "train"


class Source(BaseModel):
    """The problems that one stage of training (sft, rl) drew from: a split, its content hash, and how it was drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    split: str
    hash: str
    env: EnvConfig

    def __str__(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.env.given.items())
        return f"{self.env.name} ({options}); split {self.split}, hash {self.hash}"

    def shares(self, env: Env) -> str:
        """What its splits do not share."""
        return self._own(env).shares if self._same(env) else env.shares

    def touches(self, problems: Sequence[dict[str, Any]], env: Env) -> list[bool]:
        """Which of the problems, which are of `env`, share what splits do not with some problem that may be in this one."""
        if not self._same(env):
            return [False] * len(problems)  # of another task
        own = self._own(env)
        return [self.split in found and own.possible(one) for found, one in zip(splits_of(own, problems), problems)]

    def _same(self, env: Env) -> bool:
        return self.env.like(env.config()["name"])

    def _own(self, env: Env) -> Env:
        """The environment as it was when the problems were drawn."""
        return env.having(self.env.given)


class Contact(BaseModel):
    """What the `problems` of an evaluation share with training. `shared`: how many share what splits do not (`by`) with
    a training split; `seen`: how many are training problems themselves, None if unknown; `unknown`: stages of training of
    which the card does not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problems: int
    shared: int
    seen: int | None
    by: str
    unknown: list[str]

    def __str__(self) -> str:
        silent = f"unknown for {' and '.join(self.unknown)}: the checkpoint's card does not say" if self.unknown else ""
        if not self.shared and not self.seen:
            return silent or "none"
        seen = "it is unknown how many" if self.seen is None else f"{self.seen:,}"
        shared = f"{self.shared:,} of {self.problems:,} problems have a {self.by} of the training split"
        return "; ".join(filter(None, [f"{shared}, {seen} are training problems", silent]))


UNKNOWN = "unknown: this evaluation was made before contact was recorded"


def told(contact: Contact | None) -> str:
    """In words, for reports and cards."""
    return UNKNOWN if contact is None else str(contact)


def trained_on(data: Path, stage: str, env: Env) -> tuple[TrainingProblems, ...]:
    """For a card: the training problems of the data set in `data`. Empty, so unknown, if it has none."""
    if not has_problems(data, TRAIN):
        return ()
    return (TrainingProblems(stage=stage, split=TRAIN, hash=problems_hash(data, TRAIN), env=env.config()),)


def sources(card: Card) -> list[Source]:
    """What a card says. Raises `CheckpointError`."""
    try:
        return [Source.model_validate(one.model_dump()) for one in card.trained_on]
    except ValidationError as error:
        raise CheckpointError(
            f"what the checkpoint's card says of its training problems (trained_on) cannot be read ({error}): correct it, or "
            "take trained_on out of the card, and contact with them is unknown"
        ) from error


def contact(card: Card, data: Path, problems: Sequence[dict[str, Any]], env: Env) -> Contact:
    """What `problems`, of the data set in `data`, share with those that a checkpoint was trained on, by its card."""
    known = sources(card)
    touched = [source.touches(problems, env) for source in known]
    named = {source.stage for source in known}
    silent = [stage for stage in card.trained or ("training",) if stage not in named]
    return Contact(
        problems=len(problems),
        shared=sum(map(any, zip(*touched))),
        seen=_seen(known, touched, data, problems, env),
        by=" or ".join(dict.fromkeys(source.shares(env) for source in known)) or env.shares,
        unknown=silent,
    )


def _seen(
    known: Sequence[Source], touched: Sequence[list[bool]], data: Path, problems: Sequence[dict[str, Any]], env: Env
) -> int | None:
    """How many of the problems are training problems; None where that needs data that are not at hand."""
    here = problems_hash(data, TRAIN) if has_problems(data, TRAIN) else None
    if any(any(found) for source, found in zip(known, touched) if source.hash != here):
        return None
    if not any(source.hash == here for source in known):
        return 0
    ids = {one["id"] for one in read_problems(data, TRAIN, env)}
    return sum(one["id"] in ids for one in problems)
