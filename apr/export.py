"""`apr export`: a checkpoint as a Hugging Face folder for others: model, tokenizer, and a model card that says only what the
checkpoint, its runs and its evaluations say. The folder is a checkpoint of this project itself."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from apr.checkpoints.checkpoint import Checkpoint, save_checkpoint
from apr.checkpoints.folder import load_model
from apr.checkpoints.weights import content_id, weight_files
from apr.errors import ConfigError, RunDirectoryError
from apr.model_card import CARD, model_card
from apr.protocols import protocol_by_name, spoken
from apr.provenance import Result, check_same, read_results, stages
from apr.runs import whole_folder
from apr.tokens.speller import Speller
from envs.registry import at_hand

LICENSE = r"[A-Za-z0-9.+-]+"
Dtype = Literal["float32", "bfloat16"]


def export(
    checkpoint: Path, out: Path, evaluations: Sequence[Path], dtype: Dtype, base: Path | None, license: str
) -> str:
    """Write `out`, whole or not at all; what was written, in a line.

    `checkpoint` may be the folder of an SFT or RL run: its finished checkpoint then, or RL's newest. `license`: as Hugging
    Face names it. Raises `CheckpointError` for what is no checkpoint, or is damaged; `DataError` for an evaluation that is
    unfinished or of another checkpoint; `RunDirectoryError` for an `out` that is not free or cannot be written;
    `ConfigError` for a needless `base`, an evaluation given twice or a `license` that is no name of one.
    """
    if not re.fullmatch(LICENSE, license):
        raise ConfigError(
            f"--license {license!r} is not one word of letters, digits, `.`, `-` and `+`: give the licence's name as Hugging "
            "Face has it, such as apache-2.0, mit or other"
        )
    source = Checkpoint.open(checkpoint, adapters=True, base=base)
    source.model.check_finite()
    results = read_results(evaluations)
    with _written(out, source) as folder:
        facts = _write_model(source, dtype, folder)
        before = set() if source.is_adapter else {source.model.hash}
        for result in results:
            check_same(result, {facts["hash"], *before}, source.adapter)
        (folder / CARD).write_text(_text(out.resolve().name, source, results, facts, license), encoding="utf-8")
    told = f"{len(results)} evaluation" if len(results) == 1 else f"{len(results)} evaluations"
    return f"{out}: {facts['parameters']:,} parameters in {dtype}, {told} in its card"


def _check_free(out: Path, source: Checkpoint) -> None:
    place = out.resolve()
    for folder in {source.folder, source.model.path}:
        if place.is_relative_to(folder.resolve()):
            raise RunDirectoryError(f"{out} lies in {folder}, which is only read: give another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(f"{out} exists and is not an empty folder: give another --out, or delete it")


@contextmanager
def _written(out: Path, source: Checkpoint) -> Iterator[Path]:
    """`whole_folder` for a free `out`. What the system refuses, it refuses a user."""
    try:
        _check_free(out, source)
        with whole_folder(out.resolve()) as folder:  # resolved: `.` has no name beside which to write
            yield folder
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {out}: {error.strerror or error}. Give another --out, a folder in a place where you may write"
        ) from error


def _write_model(source: Checkpoint, dtype: Dtype, folder: Path) -> dict[str, Any]:
    """Weights, configurations, tokenizer, vocabulary and card of this project; what the model card says of the model."""
    from transformers import GenerationConfig

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or deepspeed, which saving imports, warns that it had to guess
    control = source.speller.vocabulary.control
    beside = folder / "merged"
    whole = source.whole(beside)
    model, card = load_model(whole.model.path, dtype), whole.card
    stops = stop_ids(source.speller, card.protocol)
    pad = {"pad_token_id": control.pad} if control.pad >= 0 else {}
    model.generation_config = GenerationConfig(bos_token_id=control.bos, eos_token_id=list(stops), **pad)
    model.config.use_cache = True  # training with recomputed activations turns it off
    save_checkpoint(folder, model, source.speller.vocabulary, card)
    shutil.rmtree(beside, ignore_errors=True)
    weights = weight_files(folder)
    for path in weights:
        path.chmod(0o644)  # for others, as the files beside it
    return {
        "card": card, "stops": stops, "dtype": dtype, "parameters": model.num_parameters(),
        "config": model.config.to_dict(), "hash": content_id(weights),
    }  # fmt: skip


def stop_ids(speller: Speller, protocol: str | None) -> tuple[int, ...]:
    """What ends a strand. Of an unknown protocol: what ends one in any that the speller has."""
    names = (protocol,) if protocol is not None else spoken(speller)
    prompt = (speller.vocabulary.control.bos,)  # whatever it says, strands of the protocol end alike
    found = [stop for name in names for stop in protocol_by_name(name, speller).start(prompt).stop_ids]
    return tuple(dict.fromkeys(found))


def _text(name: str, source: Checkpoint, results: Sequence[Result], facts: dict[str, Any], license: str) -> str:
    made = stages(source.model.path, facts["card"])
    named = [problems.env for problems in source.card.trained_on[::-1]]
    named += [result.facts["env"] for result in results if isinstance(result.facts.get("env"), dict)]
    env = at_hand(named[0]) if named else None
    return model_card(name, source.speller, env, made, results, facts, license)
