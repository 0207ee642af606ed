"""Models trained elsewhere: where they are, their tokenizers, and their weights with room for added tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr.errors import CheckpointError
from apr.tokens.chat_vocabulary import ChatVocabulary
from apr.tokens.text import load_tokenizer
from apr.tokens.vocabulary import Vocabulary

GGUF = ".gguf"


def located(source: Path) -> Path:
    """The folder or GGUF file that `source` names: a path, or `PACKAGE:FILE` for a file in an installed Python package.

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
    return source


def chat_vocabulary(source: Path, names: Sequence[str] | None) -> ChatVocabulary:
    """The vocabulary of the chat model at `source`, with its control tokens (see `ChatVocabulary`)."""
    try:
        return ChatVocabulary(_tokenizer(source), names)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def pretrained_model(source: Path, vocabulary: Vocabulary, seed: int) -> Any:
    """The model at `source` in float32. Tokens of `vocabulary` that it lacks get embeddings drawn around the mean of its
    own, so that they are told apart from the first step on. Raises `CheckpointError` if the vocabulary is another one."""
    from transformers import AutoModelForCausalLM

    own = _tokenizer(source)
    known = own.convert_ids_to_tokens(range(len(own)))
    if list(vocabulary.tokens[: len(known)]) != known:
        raise CheckpointError(
            f"{source} has another tokenizer than the demonstrations are spelt in: give the model that they were made for"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(**_place(source), dtype="float32", local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{source} holds no model that can be read ({error}): fetch it again") from error
    if len(vocabulary) > len(known):
        _grow(model, len(known), len(vocabulary), seed)
    return model


def _grow(model: Any, known: int, wanted: int, seed: int) -> None:
    """Set the embeddings, in and out, of the tokens from `known` on; models may have spare rows for them."""
    import torch

    if wanted > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for rows in {layer.weight.data_ptr(): layer.weight.data for layer in layers}.values():  # one if they are tied
        noise = torch.randn(wanted - known, rows.shape[1], generator=generator)
        rows[known:wanted] = rows[:known].mean(0) + noise * rows[:known].std(0)


def _tokenizer(source: Path) -> Any:
    place = _place(source)
    return load_tokenizer(place.pop("pretrained_model_name_or_path"), **place)


def _place(source: Path) -> dict[str, Any]:
    """How the Hugging Face classes are told of `source`."""
    path = located(source)
    if path.suffix == GGUF:
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return {"pretrained_model_name_or_path": path}
