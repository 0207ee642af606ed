"""Low-rank adapters (LoRA, arXiv 2106.09685) and the whole models that they make of their bases, through peft.

    adapter_config.json, adapter_model.safetensors    an adapter's folder, as peft writes it
    merged_model       from files: for evaluation and export
    merged_in_place    at the end of SFT, whose model has no use for its adapters any more
    merged_state       during RL, whose adapters train on

Engines serve whole models: vLLM's own adapters would ignore saved embeddings, and a merged model is an ordinary checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.checkpoints.card import Adapter
from apr.checkpoints.folder import ADAPTER_CONFIG, ModelFolder, is_adapter, model_folder
from apr.checkpoints.weights import WEIGHTS_FILE, content_id, weight_files
from apr.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Of an adapter's configuration: `megatron_core` is imported if the first is set, the others name caches that are pickles.
IMPORTING = ("megatron_config", "corda_config", "lora_ga_config")
ADAPTER_NAME = "default"  # peft's name for a model's only adapter


def trained_files(folder: Path) -> tuple[Path, ...]:
    """The files of weights in a trainer's checkpoint: of the whole model, or of its adapter alone."""
    return (folder / ADAPTER_WEIGHTS,) if is_adapter(folder) else weight_files(folder) or (folder / WEIGHTS_FILE,)


def base_of(adapter: Path, given: Path | None) -> ModelFolder:
    """The model that an adapter adapts: `given`, or what the adapter itself names. Raises `CheckpointError` if it is not to
    be found, or the adapter is not whole."""
    path = adapter / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        named = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is corrupt ({error!r}): save the adapter again with peft") from error
    _check_plain(config, path)
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{adapter} lacks {ADAPTER_WEIGHTS}: save the adapter again with peft, as safetensors")
    base = given if given is not None else Path(named) if isinstance(named, str) and named else None
    if base is None or not weight_files(model_folder(base)):
        where = f"its {ADAPTER_CONFIG} names {named!r}" if given is None else f"base={given}"
        raise CheckpointError(
            f"the base of the adapter in {adapter} is not to be found ({where}, where there are no safetensors weights): set "
            "base to the folder of the model that it was trained on"
        )
    return ModelFolder.open(base)


def _check_plain(config: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` for an adapter that is not low-rank, or whose configuration makes peft import a module or load
    a further file. An adapter is data, perhaps someone else's."""
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path} describes an adapter of type {config.get('peft_type')!r:.40}: only low-rank ones (LORA) can be merged"
        )
    if named := [key for key in IMPORTING if config.get(key)]:
        raise CheckpointError(
            f"{path} sets {', '.join(named)}, for which peft would run code or open files that the adapter names: if it works "
            "without, delete that from the file; else merge the adapter where it was made, and give the whole model"
        )


def adapter_facts(adapter: Path, base: ModelFolder) -> Adapter:
    """What the card of a merged model says of its adapter."""
    return Adapter(
        name=adapter.resolve().name, hash=content_id([adapter / ADAPTER_WEIGHTS]),
        base=base.path.resolve().name, base_hash=base.hash,
    )  # fmt: skip


def merged_model(adapter: Path, base: ModelFolder) -> Any:
    """The base with the adapter's products added to its weights, in float32.

    Embeddings that the base ties to its output layer stay tied only if the adapter leaves them equal: peft adds the product
    of either one to the matrix of both, while the adapter itself changes one. Raises `CheckpointError` if they do not fit.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        model = base.load()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head.weight is embedding.weight
        adapted = PeftModel.from_pretrained(model, str(adapter))
        with safe_open(adapter / ADAPTER_WEIGHTS, "np") as tensors:
            missing = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - set(tensors.keys())
        if missing:
            raise ValueError(f"the adapter lacks {', '.join(sorted(missing)[:3])}")
        if tied:
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        merged = merged_in_place(adapted)
        ends = merged.get_input_embeddings(), merged.get_output_embeddings()
        if tied and torch.equal(ends[0].weight, ends[1].weight):
            ends[1].weight = ends[0].weight
        merged.config.tie_word_embeddings = ends[1].weight is ends[0].weight
        return merged
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter in {adapter} cannot be merged into {base.path}: {error}. Set base to the model that it was trained on"
        ) from error


def merged_in_place(model: Any) -> Any:
    """`model` as one without adapters: embeddings included, which engines load from the whole model only."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model without adapters that computes the same: names and shapes of the plain model."""
    import torch
    from peft.tuners.lora import LoraLayer

    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" not in name
    }
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight(ADAPTER_NAME)
    return state
