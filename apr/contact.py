"""Contact between training and test: what a checkpoint was trained on, as its card says, and what the problems of an
evaluation share with that.

    "trained_on": [{"stage": "sft", "split": "train", "hash": "9f0c...", "problems": {"numbers": 3, "split_seed": 0, ...}}]

`hash` is the content hash of the training problems, `problems` the `CountdownSpec` that they were drawn by: it holds the
split rule and its seed. So contact can be counted where the training data are not at hand. What a card does not say is
unknown, never none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from apr.config import DataConfig
from apr.data.store import problems_folder, problems_hash, read_problems
from apr.errors import CheckpointError
from apr.presets import load_recorded
from apr.runs import CONFIG
from envs.countdown.env import SHARED, CountdownSpec

TRAINED_ON = "trained_on"  # key of a card
TRAIN = "train"


class Source(BaseModel):
    """The problems that one stage of training (sft, rl) drew from: a split, its content hash, and how it was drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    split: str
    hash: str
    problems: CountdownSpec

    def __str__(self) -> str:
        spec = self.problems
        return (
            f"{spec.numbers} numbers from {spec.low}-{spec.high}, targets {spec.target_low}-{spec.target_high}; split "
            f"{self.split} by {spec.split_by}, split seed {spec.split_seed}, hash {self.hash}"
        )

    def touches(self, problems: Sequence[dict[str, Any]]) -> list[bool]:
        """Which of the problems share what splits do not with some problem that may be in this one."""
        spec = self.problems
        splits = spec.splits([one["numbers"] for one in problems], [one["target"] for one in problems])
        return [self.split in found and self._in_range(one) for found, one in zip(splits, problems)]

    def _in_range(self, problem: dict[str, Any]) -> bool:
        """Whether there is any problem with its multiset, or of its size for its target: no hash says that."""
        spec, numbers = self.problems, problem["numbers"]
        if len(numbers) != spec.numbers:
            return False
        if spec.split_by == "multisets":
            return all(spec.low <= number <= spec.high for number in numbers)
        return bool(spec.target_low <= problem["target"] <= spec.target_high)


class Contact(BaseModel):
    """What the `problems` of an evaluation share with training. `shared`: how many have a number multiset (`by`) of a
    training split; `seen`: how many are training problems themselves, None if unknown; `unknown`: stages of training of
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


def trained_on(data: Path, stage: str) -> list[dict[str, Any]]:
    """For a card: the training problems of the data set in `data`. Empty, so unknown, if it has none or does not say how they
    were drawn."""
    if not (data / CONFIG).is_file() or not any(problems_folder(data).glob(f"{TRAIN}-*.parquet")):
        return []
    spec = load_recorded(DataConfig, data / CONFIG).problems
    return [Source(stage=stage, split=TRAIN, hash=problems_hash(data, TRAIN), problems=spec).model_dump()]


def with_sources(card: dict[str, Any], more: list[dict[str, Any]]) -> dict[str, Any]:
    """The card, with those sources of training problems that it does not name yet."""
    sources = card.get(TRAINED_ON, [])
    return {**card, TRAINED_ON: [*sources, *(source for source in more if source not in sources)]}


def sources(card: dict[str, Any]) -> list[Source]:
    """What a card says. Raises `CheckpointError`."""
    try:
        return [Source.model_validate(one) for one in card.get(TRAINED_ON, [])]
    except (ValidationError, TypeError) as error:
        raise CheckpointError(
            f"what the checkpoint's card says of its training problems ({TRAINED_ON}) cannot be read ({error}): correct it, or "
            f"take {TRAINED_ON} out of the card, and contact with them is unknown"
        ) from error


def contact(card: dict[str, Any], data: Path, problems: Sequence[dict[str, Any]]) -> Contact:
    """What `problems`, of the data set in `data`, share with those that a checkpoint was trained on, by its card."""
    known = sources(card)
    touched = [source.touches(problems) for source in known]
    named = {source.stage for source in known}
    silent = [stage for stage in card.get("trained", ["training"]) if stage not in named]
    return Contact(
        problems=len(problems),
        shared=sum(map(any, zip(*touched))),
        seen=_seen(known, touched, data, problems),
        by=" or ".join(dict.fromkeys(SHARED[source.problems.split_by] for source in known)) or SHARED["multisets"],
        unknown=silent,
    )


def _seen(
    known: Sequence[Source], touched: Sequence[list[bool]], data: Path, problems: Sequence[dict[str, Any]]
) -> int | None:
    """How many of the problems are training problems; None where that needs data that are not at hand."""
    here = problems_hash(data, TRAIN) if any(problems_folder(data).glob(f"{TRAIN}-*.parquet")) else None
    if any(any(found) for source, found in zip(known, touched) if source.hash != here):
        return None
    if not any(source.hash == here for source in known):
        return 0
    ids = {one["id"] for one in read_problems(data, TRAIN)}
    return sum(one["id"] in ids for one in problems)
