"""The card of a checkpoint, `apr_card.json`: who taught its model, in which stages, on which problems.

    {"solver": "spawn_join", "protocol": "spawn_join", "trained": ["sft"], "condition": "none", "data_hash": "e0de...",
     "commit": "6939...", "trained_on": [{"stage": "sft", "split": "train", "hash": "5069...", "env": {...}}]}

What a card does not say is unknown, never none. Keys of other versions are kept as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from apr.config import ConditionConfig, RewardConfig
from apr.errors import CheckpointError, ConfigError
from apr.tokens.control import ProtocolName

CARD = "apr_card.json"
ADAPTER_STAGE = "adapter"  # among the stages of a merged model; how its adapter was trained is unknown


class TrainingProblems(BaseModel):
    """The problems that one stage of training drew from. `hash`: the content hash of that split; `env`: how the
    environment drew them, as its own plain data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    split: str
    hash: str
    env: dict[str, Any]


class Adapter(BaseModel):
    """An adapter that was merged into its base: the names that their folders had, and the hashes of their weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    hash: str
    base: str
    base_hash: str

    def same(self, other: Adapter | None) -> bool:
        """Whether `other` has the same weights, wherever its folders lie."""
        return other is not None and (self.hash, self.base_hash) == (other.hash, other.base_hash)


class Reward(RewardConfig):
    """The reward of an RL run, as the run's own version had it."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Card(BaseModel):
    """What a checkpoint says of itself. `None` and empty fields are unknown.

    Example: `Card(solver="sos_plus", protocol="serial", trained=("sft",)).after("rl").trained` is `("sft", "rl")`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    solver: str | None = None  # the teacher
    protocol: ProtocolName | None = None
    trained: tuple[str, ...] = ()  # stages, the oldest first
    condition: Literal["none", "context", "children"] | None = None  # what the prompts of training asked for
    data_hash: str | None = None  # of the demonstrations
    commit: str | None = None  # of this project, in SFT
    trained_on: tuple[TrainingProblems, ...] = ()
    base: str | None = None  # the pretrained model that SFT started from
    share: float | None = None  # of the training that a snapshot has seen
    adapter: Adapter | None = None
    reward: Reward | None = None  # of RL

    @field_validator("trained_on", mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        """Leave out what earlier versions wrote, which names no environment: contact with it is unknown."""
        if not isinstance(content, list | tuple):
            return content
        return [one for one in content if not (isinstance(one, dict) and "problems" in one and "env" not in one)]

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of the checkpoint in `folder`; empty if there is none. Raises `CheckpointError` for a corrupt one."""
        path = folder / CARD
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _corrupt(path, str(error)) from error
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: Any, where: object) -> Card:
        """The card whose JSON form is `content`. Raises `CheckpointError`, which names `where` and the unfit keys."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise _corrupt(where, "; ".join(map(_unfit, error.errors()))) from error

    def write(self, folder: Path) -> None:
        """Write the card into a checkpoint's folder."""
        (folder / CARD).write_text(json.dumps(self.content(), indent=1), encoding="utf-8")

    def content(self) -> dict[str, Any]:
        """The JSON form: what is known, and nothing else."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def with_facts(self, **facts: Any) -> Card:
        """The card with some of its fields replaced; `None` makes one unknown. Raises `CheckpointError` for unfit ones."""
        return Card.parse({**self.model_dump(exclude_unset=True), **facts}, "this card")

    def after(self, stage: str) -> Card:
        """The card of a model that went through `stage` as well. A stage that is repeated counts once, as the last."""
        return self.with_facts(trained=[*(one for one in self.trained if one != stage), stage])

    def with_problems(self, more: Iterable[TrainingProblems]) -> Card:
        """The card with those training problems that it does not name yet."""
        new = [one for one in more if one not in self.trained_on]
        return self.with_facts(trained_on=[one.model_dump() for one in (*self.trained_on, *new)])

    def check_protocol(self, protocol: str, checkpoint: Path) -> None:
        """Raise `ConfigError` if the model was trained in a protocol other than `protocol`, in which it can say nothing."""
        if self.protocol not in (None, protocol):
            raise ConfigError(
                f"{checkpoint} was trained in protocol {self.protocol}, not in {protocol}: set protocol={self.protocol}"
            )

    def check_condition(self, asked: ConditionConfig | None, checkpoint: Path) -> None:
        """Raise `ConfigError` if prompts are to ask for what no prompt asked for in training: the model would not heed it,
        and reach little. A card that does not say is believed to fit."""
        if asked is None or self.condition in (None, asked.kind):
            return
        theirs = "ask for nothing" if self.condition == "none" else f"ask for {self.condition}"
        instead = "" if self.condition == "none" else f"set condition={{kind: {self.condition}, value: ...}}, "
        raise ConfigError(
            f"condition asks for {asked.kind}, and {checkpoint} was trained on prompts that {theirs}: {instead}leave "
            f"condition out, or train one on demonstrations of a teacher with `condition: {asked.kind}`"
        )


def _unfit(fault: Any) -> str:
    """One of pydantic's findings, in the words of JSON."""
    if not fault["loc"]:
        return "it should be a mapping"
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].replace('tuple', 'list')}"


def _corrupt(where: object, why: str) -> CheckpointError:
    return CheckpointError(
        f"{where} is corrupt ({why}): correct it, take what is unfit out of it (which is then unknown), or train or export "
        "the checkpoint again"
    )
