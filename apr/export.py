"""`apr export`: a checkpoint as a Hugging Face folder for others: model, tokenizer, and a model card that says only what the
checkpoint, its runs and its evaluations say. The folder is a checkpoint of this project itself."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apr.dialects import dialect_of
from apr.engines.build import check_checkpoint
from apr.errors import CheckpointError, ConfigError, RunDirectoryError
from apr.finite import check_finite_files
from apr.merge import WEIGHTS, adapter_facts, is_adapter, merge, model_folder
from apr.model_card import ASKED, CARD, model_card
from apr.protocols import PROTOCOLS, protocol_by_name
from apr.provenance import Result, check_same, read_results, stages
from apr.runs import disk_error, file_hash, models_in, whole_folder
from apr.sft.train import CARD as APR_CARD
from apr.sft.train import read_card, save_checkpoint
from apr.tokens.dialect import Dialect

LICENSE = r"[A-Za-z0-9.+-]+"
Dtype = Literal["float32", "bfloat16"]
EXAMPLE: dict[str, Any] = {"numbers": [3, 5, 8], "target": 23}


@dataclass(frozen=True)
class Source:
    """What is exported: a checkpoint, or an adapter's folder with that of its base."""

    folder: Path
    model: Path  # the base of an adapter, else the folder itself
    card: dict[str, Any]
    dialect: Dialect

    @property
    def adapter(self) -> dict[str, str] | None:
        return adapter_facts(self.folder, self.model) if is_adapter(self.folder) else None


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
    source = _source(_located(checkpoint), base)
    results = read_results(evaluations)
    with _written(out, source) as folder:
        facts = _write_model(source, dtype, folder)
        before = set() if source.adapter else {file_hash(source.folder / WEIGHTS)}
        for result in results:
            check_same(result, {facts["hash"], *before}, source.adapter)
        (folder / CARD).write_text(_text(out.resolve().name, source, results, facts, license), encoding="utf-8")
    told = f"{len(results)} evaluation" if len(results) == 1 else f"{len(results)} evaluations"
    return f"{out}: {facts['parameters']:,} parameters in {dtype}, {told} in its card"


def _located(checkpoint: Path) -> Path:
    """The checkpoint itself: `checkpoint`, or the one of the run that it is the folder of."""
    if (checkpoint / WEIGHTS).is_file() or is_adapter(checkpoint):
        return checkpoint
    for folder in models_in(checkpoint):
        if (folder / WEIGHTS).is_file():
            return folder
    raise CheckpointError(
        f"no model in {checkpoint} ({WEIGHTS}), nor is it the folder of an SFT or RL run that has written a checkpoint: give "
        "one of `apr sft` or `apr rl`, or finish that run"
    )


def _source(folder: Path, base: Path | None) -> Source:
    model = model_folder(folder, base)
    check_checkpoint(model)
    check_finite_files(model)
    return Source(folder, model, _card(model), dialect_of(model))


def _card(folder: Path) -> dict[str, Any]:
    """The checkpoint's card, its fields of the types that they should have. Raises `CheckpointError`."""
    card = read_card(folder)
    sound = (
        isinstance(card, dict)
        and isinstance(trained := card.get("trained", []), list)
        and all(isinstance(stage, str) for stage in trained)
        and card.get("protocol") in (None, *PROTOCOLS)
        and card.get("condition") in (None, *ASKED)
        and isinstance(adapter := card.get("adapter", {}), dict)
        and (not adapter or all(isinstance(adapter.get(fact), str) for fact in ("name", "hash", "base", "base_hash")))
    )
    if not sound:
        raise CheckpointError(
            f"{folder / APR_CARD} is corrupt (its protocol should be one of {', '.join(PROTOCOLS)}, its condition one of "
            f"{', '.join(ASKED)}, its stages a list of names, its adapter named with hashes): train or export the checkpoint "
            "again"
        )
    return card


def _check_free(out: Path, source: Source) -> None:
    place = out.resolve()
    for folder in {source.folder, source.model}:
        if place.is_relative_to(folder.resolve()):
            raise RunDirectoryError(f"{out} lies in {folder}, which is only read: give another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(f"{out} exists and is not an empty folder: give another --out, or delete it")


@contextmanager
def _written(out: Path, source: Source) -> Iterator[Path]:
    """`whole_folder` for a free `out`. What the system refuses, it refuses a user."""
    try:
        _check_free(out, source)
        with whole_folder(out.resolve()) as folder:  # resolved: `.` has no name beside which to write
            yield folder
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {out}: {error.strerror or error}. Give another --out, a folder in a place where you may write"
        ) from error


def _write_model(source: Source, dtype: Dtype, folder: Path) -> dict[str, Any]:
    """Weights, configurations, tokenizer, vocabulary and card of this project; what the model card says of the model."""
    from transformers import GenerationConfig

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or deepspeed, which saving imports, warns that it had to guess
    control = source.dialect.vocabulary.control
    adapter = source.adapter
    if adapter is None:
        model, card = _loaded(source.folder, dtype), source.card
    else:
        beside = folder / "merged"
        beside.mkdir()
        merge(source.folder, source.model, None, beside)
        model, card = _loaded(beside, dtype), read_card(beside)
    stops = stop_ids(source.dialect, card.get("protocol"))
    pad = {"pad_token_id": control.pad} if control.pad >= 0 else {}
    model.generation_config = GenerationConfig(bos_token_id=control.bos, eos_token_id=list(stops), **pad)
    model.config.use_cache = True  # training with recomputed activations turns it off
    save_checkpoint(folder, model, source.dialect.vocabulary, card)
    (folder / WEIGHTS).chmod(0o644)  # for others, as the files beside it
    if adapter is not None:
        shutil.rmtree(folder / "merged")
    return {
        "card": card, "stops": stops, "dtype": dtype, "parameters": model.num_parameters(),
        "config": model.config.to_dict(), "hash": file_hash(folder / WEIGHTS),
    }  # fmt: skip


def _loaded(folder: Path, dtype: Dtype) -> Any:
    """The model in `folder`. Raises `CheckpointError` if it cannot be read or lacks weights."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if (full := disk_error(folder, error)) is not error:
            raise full from error
        raise CheckpointError(f"{folder} holds no readable model ({error}): train or export it again") from error
    if absent := sorted(found["missing_keys"]):
        raise CheckpointError(f"{folder / WEIGHTS} lacks {', '.join(absent[:3])}: train it or fetch it again")
    return model


def stop_ids(dialect: Dialect, protocol: str | None) -> tuple[int, ...]:
    """What ends a strand. Of an unknown protocol: what ends one in any that the dialect has."""
    names = PROTOCOLS if protocol is None else (protocol,)
    prompt = dialect.prompt(**EXAMPLE)
    found = [stop for name in names for stop in protocol_by_name(name, dialect).start(prompt).stop_ids]
    return tuple(dict.fromkeys(found))


def _text(name: str, source: Source, results: Sequence[Result], facts: dict[str, Any], license: str) -> str:
    made = stages(source.folder if source.adapter is None else source.model, facts["card"])
    return model_card(name, source.dialect, EXAMPLE, made, results, facts, license)
