"""Low-rank adapters in peft's folders (`adapter_config.json`, `adapter_model.safetensors`), merged into their base.

Engines serve whole models: vLLM's own adapters would ignore saved embeddings. A merged model is an ordinary checkpoint,
whose card names the adapter and the base by their hashes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apr.dialects import dialect_of
from apr.errors import CheckpointError, ConfigError, RunDirectoryError
from apr.finite import check_finite_files
from apr.runs import file_hash, whole_folder
from apr.sft.train import read_card, save_checkpoint

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGED = "merged"
WEIGHTS = "model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter, which is no model by itself."""
    return (folder / ADAPTER_CONFIG).is_file()


def model_folder(checkpoint: Path, base: Path | None) -> Path:
    """The folder that has the model: `checkpoint` itself, or the base of the adapter that it holds.

    Raises `CheckpointError` if an adapter is not whole or its base is not to be found, and `ConfigError` for a `base` where
    there is no adapter.
    """
    if is_adapter(checkpoint):
        return _base(checkpoint, base)
    if base is not None:
        raise ConfigError(
            f"base={base} is of an adapter, and {checkpoint} holds none ({ADAPTER_CONFIG}): leave base out"
        )
    return checkpoint


def whole_model(checkpoint: Path, base: Path | None, dialect: str | None, out: Path) -> Path:
    """`checkpoint`, or if it holds an adapter, `out` with the model that it makes of its base. One made before is kept.

    Raises what `model_folder` does, `CheckpointError` if adapter and base do not fit together, and `RunDirectoryError` if
    `out` holds something else or cannot be written.
    """
    source = model_folder(checkpoint, base)
    if source == checkpoint:
        return checkpoint
    facts = adapter_facts(checkpoint, source)
    if out.exists():
        if read_card(out).get("adapter") != facts:
            raise RunDirectoryError(f"{out} is of another adapter or base than {checkpoint}: give another `out`")
        return out
    try:
        with whole_folder(out) as folder:
            merge(checkpoint, source, dialect, folder)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write the merged model to {out}: {error.strerror or error}. Give another `out`, where you may write"
        ) from error
    return out


def adapter_facts(adapter: Path, base: Path) -> dict[str, str]:
    """What a card says of an adapter: hashes, and the names that folders had."""
    return {
        "name": adapter.resolve().name, "hash": file_hash(adapter / ADAPTER_WEIGHTS),
        "base": base.resolve().name, "base_hash": file_hash(base / WEIGHTS),
    }  # fmt: skip


def merge(adapter: Path, base: Path, dialect: str | None, folder: Path) -> None:
    """Write the whole model to `folder`, in float32, as a checkpoint of this project. Raises `CheckpointError`."""
    vocabulary, card = dialect_of(base, dialect).vocabulary, read_card(base)
    trained = [*card.get("trained", []), "adapter"]
    card = {**card, "trained": trained, "adapter": adapter_facts(adapter, base)}
    card.pop("condition", None)  # what the prompts asked for that the adapter was trained on is not known
    merged = _merged(adapter, base)
    check_finite_files(adapter)
    save_checkpoint(folder, merged, vocabulary, card)


def _base(adapter: Path, given: Path | None) -> Path:
    """The folder of an adapter's base: `given`, or what the adapter itself names."""
    path = adapter / ADAPTER_CONFIG
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is corrupt ({error!r}): save the adapter again with peft") from error
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{adapter} lacks {ADAPTER_WEIGHTS}: save the adapter again with peft, as safetensors")
    base = Path(named or "") if given is None else given
    if not (base / WEIGHTS).is_file():
        where = f"its {ADAPTER_CONFIG} names {named!r}" if given is None else f"base={given}"
        raise CheckpointError(
            f"the base of the adapter in {adapter} is not to be found ({where}, where there is no {WEIGHTS}): set base to "
            "the folder of the model that it was trained on, its weights in one file"
        )
    return base


def _merged(adapter: Path, base: Path) -> Any:
    """The base with the adapter's products added to its weights.

    Embeddings that the base ties to its output layer stay tied only if the adapter leaves them equal: peft adds the product
    of either one to the matrix of both, while the adapter itself changes one.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="float32", local_files_only=True)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head.weight is embedding.weight
        adapted = PeftModel.from_pretrained(model, str(adapter))
        with safe_open(adapter / ADAPTER_WEIGHTS, "np") as tensors:
            missing = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - set(tensors.keys())
        if missing:
            raise ValueError(f"the adapter lacks {', '.join(sorted(missing)[:3])}")
        if tied:
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        merged = adapted.merge_and_unload()
        ends = merged.get_input_embeddings(), merged.get_output_embeddings()
        if tied and torch.equal(ends[0].weight, ends[1].weight):
            ends[1].weight = ends[0].weight
        merged.config.tie_word_embeddings = ends[1].weight is ends[0].weight
        return merged
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter in {adapter} cannot be merged into {base}: {error}. Set base to the model that it was trained on"
        ) from error
