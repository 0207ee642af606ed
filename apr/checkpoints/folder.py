"""The folder of a model in Hugging Face form, whoever made it: where it is, its configuration and its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from apr.checkpoints.weights import INDEX_FILE, WEIGHTS_FILE, check_finite_files, content_id, shapes, weight_files
from apr.errors import CheckpointError
from apr.runs import disk_error, models_in

CONFIG_FILE = "config.json"
ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter, which is no model by itself."""
    return (folder / ADAPTER_CONFIG).is_file()


def model_folder(place: Path) -> Path:
    """The folder of the model that `place` names: of a run of SFT or RL that of its newest checkpoint, else `place` itself.

    Example: `model_folder(Path("runs/sft"))` is `runs/sft/checkpoint`, once that run has ended.
    """
    if is_adapter(place) or weight_files(place):
        return place
    return next((folder for folder in models_in(place) if weight_files(folder)), place)


@dataclass(frozen=True)
class ModelFolder:
    """The opened folder of a model. `config`: what its config.json says."""

    path: Path
    weights: tuple[Path, ...]
    config: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, place: Path) -> ModelFolder:
        """The model in `place`, a folder or that of the run that made it.

        Raises `CheckpointError` if there is none, if it is an adapter, or if its configuration cannot be read.
        """
        path = model_folder(place)
        if is_adapter(path):
            raise CheckpointError(f"{path} is an adapter, which is no model by itself: merge it with `apr export`")
        weights = weight_files(path)
        if not weights:
            raise CheckpointError(
                f"no model in {path} (neither {WEIGHTS_FILE} nor {INDEX_FILE}), nor is it the folder of an SFT or RL run that "
                "has written a checkpoint: train one with `apr sft`, finish that run, or set `checkpoint`"
            )
        try:
            config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise TypeError("no mapping")
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path / CONFIG_FILE} is missing or corrupt: {error!r}") from error
        return cls(path, weights, config)

    @cached_property
    def window(self) -> int:
        """Positions that the model was made for."""
        return self._number("max_position_embeddings")

    @cached_property
    def outputs(self) -> int:
        """How many ids the model knows, which may be more than its tokenizer has."""
        return self._number("vocab_size")

    @cached_property
    def hash(self) -> str:
        """Identifies the weights."""
        return content_id(self.weights)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights. Raises `CheckpointError`."""
        return shapes(self.weights)

    def check_finite(self) -> None:
        """Raise `CheckpointError` unless every weight is finite."""
        check_finite_files(self.weights)

    def load(self, dtype: str = "float32") -> Any:
        """The model, opened by transformers. Raises `CheckpointError` if it cannot be read or lacks weights."""
        return load_model(self.path, dtype)

    def _number(self, key: str) -> int:
        """A number from the configuration, or from that of its text model, or transformers' default for such a model."""
        text = self.config.get("text_config")
        said = {**(text if isinstance(text, dict) else {}), **self.config}
        try:
            return int(said[key] if key in said else self._default(key))
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / CONFIG_FILE} is missing or corrupt ({key}: {error!r}): train or export the model again"
            ) from error

    def _default(self, key: str) -> Any:
        if "model_type" not in self.config:
            raise KeyError(key)
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        return getattr(config.get_text_config(), key)


def load_model(folder: Path, dtype: str, **options: Any) -> Any:
    """The causal language model in `folder`. `options` are those of transformers' `from_pretrained`.

    Raises `CheckpointError` if it cannot be read or lacks weights, and `ResourceError` for a full disk.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if (full := disk_error(folder, error)) is not error:
            raise full from error
        raise CheckpointError(
            f"{folder} holds no readable model ({error}): train or export it again, or fetch it anew"
        ) from error
    if absent := sorted(loading["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {', '.join(absent[:3])}: train it or fetch it again")
    return model
