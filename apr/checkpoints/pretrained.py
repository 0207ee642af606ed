"""Models trained elsewhere: where they are, their tokenizers, and their weights with room for added tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr.checkpoints.finite import first_not_finite
from apr.checkpoints.folder import ModelFolder, load_model, model_folder
from apr.checkpoints.weights import content_id, weight_files
from apr.errors import CheckpointError
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.text import load_tokenizer
from apr.tokens.vocabulary import Vocabulary

GGUF = ".gguf"


def located(source: Path) -> Path:
    """The folder or GGUF file that `source` names: a path, that of a run of SFT or RL, or `PACKAGE:FILE` for a file in an
    installed Python package.

    Raises `CheckpointError` if it is not there.
    """
    package, colon, file = str(source).partition(":")
    if colon and not source.exists():
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise CheckpointError(
                f"{source}: no package {package} is installed. Its pinned version is in locks/cpu.txt; or give a path"
            )
        source = Path(spec.origin).parent / file
    if not source.exists():
        raise CheckpointError(f"{source} is not there: give a model's Hugging Face folder or its GGUF file")
    return source if source.is_file() else model_folder(source)


def absent(source: Path) -> bool:
    """Whether nothing is at `source`."""
    try:
        path = located(source)
    except CheckpointError:
        return True
    return path.is_dir() and not weight_files(path)


def source_hash(source: Path) -> str:
    """Identifies the weights at `source`. Raises `CheckpointError` if there are none."""
    path = located(source)
    return content_id([path]) if path.is_file() else ModelFolder.open(path).hash


def chat_vocabulary(source: Path, names: Sequence[str] | None) -> ChatVocabulary:
    """The vocabulary of the chat model at `source`, with its control tokens (see `ChatVocabulary`)."""
    try:
        return ChatVocabulary(_tokenizer(source), names)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def pretrained_model(source: Path, vocabulary: Vocabulary, seed: int) -> Any:
    """The model at `source` in float32, with new embeddings for the control tokens of `vocabulary`, which it may lack.

    Raises `CheckpointError` if it is not there, if a weight is not finite, or if its tokenizer spells otherwise than
    `vocabulary`.
    """
    from transformers import GgufConfig

    own = _tokenizer(source)
    known = own.convert_ids_to_tokens(range(len(own)))
    if list(vocabulary.tokens[: len(known)]) != known:
        raise CheckpointError(
            f"{source} has another tokenizer than the demonstrations are spelt in: give the model that they were made for"
        )
    place = _place(source)
    if "gguf_file" in place:  # plain weights, which alone can be trained and saved
        place["quantization_config"] = GgufConfig(dequantize=True)
    model = load_model(place.pop("pretrained_model_name_or_path"), "float32", **place)
    if name := first_not_finite(model.state_dict().items()):
        raise CheckpointError(f"{name} in {source} is not finite: fetch the model again, or give another")
    if len(vocabulary) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    _embed(model, vocabulary.unknown_to_text, seed)
    return model


def _embed(model: Any, tokens: Sequence[int], seed: int) -> None:
    """Draw the embeddings, in and out, of `tokens` around the mean of all. Tokens that a model has in reserve are often
    as untrained as those just added, and as like each other: it could not tell a spawn from a join."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for rows in {layer.weight.data_ptr(): layer.weight.data for layer in layers}.values():  # one if they are tied
        noise = torch.randn(len(tokens), rows.shape[1], generator=generator)
        rows[list(tokens)] = rows.mean(0) + noise * rows.std(0)


def _tokenizer(source: Path) -> Any:
    place = _place(source)
    return load_tokenizer(place.pop("pretrained_model_name_or_path"), **place)


def _place(source: Path) -> dict[str, Any]:
    """How the Hugging Face classes are told of `source`."""
    path = located(source)
    if path.suffix == GGUF:
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return {"pretrained_model_name_or_path": path}
