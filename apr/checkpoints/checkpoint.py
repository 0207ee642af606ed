"""A checkpoint: a model's folder, or an adapter's, with all that the project knows of it. One reader, one writer.

Checkpoint.open(place)      finds the folder, reads card, speller and configuration, once
  .check_fits(...)          protocol, condition, window
  .model                    weights, window, hash (`apr.checkpoints.folder`)
  .whole(out)               of an adapter: merged with its base
save_checkpoint(...)        writes one
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from apr.checkpoints.adapters import ADAPTER_WEIGHTS, adapter_facts, base_of, merged_model
from apr.checkpoints.card import ADAPTER_STAGE, Adapter, Card
from apr.checkpoints.finite import check_finite
from apr.checkpoints.folder import ADAPTER_CONFIG, ModelFolder, is_adapter, model_folder
from apr.checkpoints.weights import check_finite_files
from apr.config import ConditionConfig
from apr.errors import ConfigError, RunDirectoryError
from apr.protocols import SHARING
from apr.runs import whole_folder
from apr.spellers import speller_of
from apr.threads.limits import Limits
from apr.tokens.speller import Speller
from apr.tokens.vocabulary import Vocabulary

MERGED = "merged"  # folder of a merged model, within that of an evaluation


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. `folder` has what was named: the model itself, or an adapter of it.

    `model` is the whole model's folder, of an adapter that of its base. `card` is what the model says of itself, of an
    adapter what the merged model will say.
    """

    folder: Path
    model: ModelFolder
    card: Card
    speller: Speller = field(repr=False)

    @classmethod
    def open(
        cls, place: Path, speller: str | None = None, *, adapters: bool = False, base: Path | None = None
    ) -> Checkpoint:
        """The checkpoint that `place` names: its folder, or that of the SFT or RL run that wrote it.

        `speller`: of a model from elsewhere, which does not say. `adapters`: whether an adapter will do, with `base` if it
        names none. Raises `CheckpointError` if it is no checkpoint, is damaged or of an unknown speller, and `ConfigError`
        for a `base` where there is no adapter.
        """
        folder = model_folder(place)
        if adapters and is_adapter(folder):
            model = base_of(folder, base)
            # What the prompts asked for that the adapter was trained on is not known.
            card = Card.read(model.path).after(ADAPTER_STAGE).with_facts(condition=None, adapter=None)
        else:
            model = ModelFolder.open(folder)
            if base is not None:
                raise ConfigError(
                    f"base={base} is of an adapter, and {folder} holds none ({ADAPTER_CONFIG}): leave base out"
                )
            card = Card.read(folder)
        opened = cls(folder, model, card, speller_of(model.path, speller))
        _ = model.window  # refused here, if it does not say
        return opened

    @property
    def is_adapter(self) -> bool:
        return self.folder != self.model.path

    @cached_property
    def adapter(self) -> Adapter | None:
        """What tells the adapter and its base from others; None for a whole model."""
        return adapter_facts(self.folder, self.model) if self.is_adapter else None

    def check_fits(self, protocol: str, condition: ConditionConfig | None, limits: Limits) -> None:
        """Raise `ConfigError` unless the model was trained in `protocol` and on such a `condition`, as far as its card says,
        and has a window for `limits`: for positions, where strands share what they see, and else for tokens."""
        name, bound = ("reach", limits.reach) if protocol in SHARING else ("context", limits.context)
        if bound is not None and bound > self.model.window:
            raise ConfigError(
                f"limits.{name} ({bound}) exceeds the window ({self.model.window}) of the model in {self.folder}: lower it"
            )
        self.card.check_protocol(protocol, self.folder)
        self.card.check_condition(condition, self.folder)

    def whole(self, out: Path) -> Checkpoint:
        """The checkpoint itself; of an adapter the merged model in `out`, where one made before is kept.

        Raises `CheckpointError` if adapter and base do not fit together, and `RunDirectoryError` if `out` holds something
        else or cannot be written.
        """
        if not self.is_adapter:
            return self
        assert self.adapter is not None, "it is no whole model"
        if out.exists() and not self.adapter.same(Card.read(out).adapter):
            raise RunDirectoryError(f"{out} is of another adapter or base than {self.folder}: give another `out`")
        if not out.exists():
            try:
                with whole_folder(out) as folder:
                    self.merge(folder)
            except OSError as error:
                raise RunDirectoryError(
                    f"cannot write the merged model to {out}: {error.strerror or error}. Give another `out`, where you may "
                    "write"
                ) from error
        return Checkpoint.open(out)

    def merge(self, folder: Path) -> None:
        """Write the whole model of an adapter to `folder`, in float32. Raises `CheckpointError`."""
        assert self.adapter is not None, "a whole model has nothing to merge"
        model = merged_model(self.folder, self.model)
        check_finite_files([self.folder / ADAPTER_WEIGHTS])
        save_checkpoint(folder, model, self.speller.vocabulary, self.card.with_facts(adapter=self.adapter.model_dump()))


def save_checkpoint(
    folder: Path, model: Any, vocabulary: Vocabulary, card: Card, state: dict[str, Any] | None = None
) -> None:
    """Write a Hugging Face folder: weights (`state` in place of the model's own, if given), model config, tokenizer, the
    vocabulary's hash, and the card. Raises `NotFiniteError`, and writes nothing, if a weight is not finite."""
    check_finite(model.state_dict() if state is None else state)
    model.save_pretrained(folder, state_dict=state)
    vocabulary.save(folder)
    card.write(folder)
