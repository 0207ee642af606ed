"""`apr sft`: supervised fine-tuning with TRL, on pre-tokenised rows of demonstrations: of a small Llama from scratch, or
of a pretrained model (`apr.sft.base`)."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from apr.checkpoints.adapters import merged_in_place, trained_files
from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import save_checkpoint
from apr.checkpoints.pretrained import absent, pretrained_model, source_hash
from apr.checkpoints.state import read_state
from apr.checkpoints.weights import check_finite_files
from apr.config import ModelConfig, SftConfig
from apr.contact import trained_on
from apr.data.store import data_env, demonstrations_facts, demonstrations_folder, demonstrations_hash
from apr.errors import CheckpointError, NotFiniteError
from apr.memory import keep_freed_memory
from apr.runs import automatic_threads, check_out, commit, recorded, refuse_other, run_directory, whole_folder
from apr.seeds import derive_seed
from apr.sft.base import adapters, check_base, let_head_train
from apr.sft.examples import check_warmup, examples_of
from apr.signals import stop_at_signal
from apr.spellers import speller_in
from apr.tokens.vocabulary import Vocabulary

CHECKPOINT = "checkpoint"
SNAPSHOTS = "snapshots"
ROWS = "rows"  # laid out from the demonstrations; gone at the end
STATE = "trainer_state.json"  # what the trainer writes last
# Keys that may change between calls without changing the result (`data` and `base` are covered by their hashes).
MAY_DIFFER = ("out", "env", "threads", "log_every", "checkpoint_every", "snapshots")


@dataclass(frozen=True)
class Prepared:
    """What a training needs, all of it found and fit. Nothing was written.

    `hashes`: of the data and the base; `facts`: of the demonstrations; `start`: the checkpoint of an interrupted training to go
    on from.
    """

    hashes: dict[str, str]
    facts: dict[str, Any]
    vocabulary: Vocabulary
    start: Path | None
    finished: bool


def prepare(config: SftConfig) -> Prepared:
    """Find and check what `config` names. Cheap rules come first, before any heavy library is loaded.

    Raises `RunDirectoryError` if `config.out` holds a training of another configuration or on other data, and
    `CheckpointError` if the checkpoint to go on from is damaged.
    """
    check_out(config.out, config)
    start, finished = _last_checkpoint(config.out), (config.out / CHECKPOINT).is_dir()
    data_env(config.data, config.env)
    hashes = {"data_hash": demonstrations_hash(config.data, config.solver)}
    if config.base is not None and not (finished and absent(config.base)):  # a finished training reads no base
        hashes["base_hash"] = source_hash(config.base)
    if finished or start:
        refuse_other(config.out, config, MAY_DIFFER, **hashes)
    facts = demonstrations_facts(config.data, config.solver)
    vocabulary = speller_in(config.data, facts["speller"]).vocabulary
    if not finished:
        check_base(config.base, vocabulary)
        if start:
            _check_whole(start)
    return Prepared(hashes, facts, vocabulary, start, finished)


def train(config: SftConfig) -> Path:
    """Train, or go on from the last checkpoint of an interrupted run; returns the finished checkpoint's folder.

    Raises what `prepare` does, and `NotFiniteError` at the first loss, gradient norm or weight that is not finite; the newest
    checkpoint is then one from before.
    """
    finished, ready = config.out / CHECKPOINT, prepare(config)
    if ready.finished:
        return finished
    facts, vocabulary, start, hashes = ready.facts, ready.vocabulary, ready.start, dict(ready.hashes)
    if start and "base_hash" not in recorded(config.out):  # of an earlier version: nobody knows what it began with
        hashes.pop("base_hash", None)
    threads = config.threads or automatic_threads(config.out if start else None)
    with run_directory(config.out, config, **hashes, threads=threads) as run, _scratch(run / ROWS) as kept:
        config = config.model_copy(update={"threads": threads})
        print(f"sft {config.solver}: reading {demonstrations_folder(config.data, config.solver)}", flush=True)
        examples = examples_of(config, kept)
        cut = {"head": "cut to their head", "drop": "dropped"}[config.overlong]
        count = f"{len(examples.order)} rows, {sum(examples.lengths):,} tokens"
        print(f"sft {config.solver}: {count}; {examples.over} over-long ones {cut}", flush=True)
        trained = trained_on(config.data, "sft", data_env(config.data, config.env))
        card = Card(
            solver=config.solver, trained=("sft",), data_hash=hashes["data_hash"], commit=commit(), trained_on=trained,
            base=None if config.base is None else str(config.base),
        ).with_facts(protocol=facts["protocol"], condition=facts.get("condition"))  # fmt: skip
        batches = examples.batches(config)
        if not start:
            check_warmup(config, len(batches))
        trainer = _trainer(config, run, examples.table, batches, vocabulary)
        from apr.sft.callbacks import StopWhenAsked

        for share in config.snapshots:
            folder = run / SNAPSHOTS / f"{share:g}"
            if start and not folder.is_dir() and _step_of_share(share, len(batches)) <= _step_of(start):
                print(
                    f"snapshots: {share:g} of the training was passed before it was asked for, so {folder} is not written",
                    file=sys.stderr,
                )
            trainer.add_callback(_snapshot(folder, share, vocabulary, card))
        try:
            with stop_at_signal() as stopping:
                trainer.add_callback(StopWhenAsked(stopping))
                trainer.train(resume_from_checkpoint=str(start) if start else None)
            if trainer.state.global_step < trainer.state.max_steps:
                raise KeyboardInterrupt(_stopped(trainer.state))
            with whole_folder(finished) as folder:
                save_checkpoint(folder, merged_in_place(trainer.model), vocabulary, card)
                (folder / "log.json").write_text(json.dumps(trainer.state.log_history), encoding="utf-8")
        except NotFiniteError as error:
            raise _diverged(config, trainer.state, error) from error
    return finished


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """The folder, with nothing in it; gone at the end."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _stopped(state: Any) -> str:
    return f"saved after step {state.global_step} of {state.max_steps}; call the same command again to go on"


def _diverged(config: SftConfig, state: Any, error: NotFiniteError) -> NotFiniteError:
    """`error` with what to do about it, and what is left."""
    kept = _last_checkpoint(config.out)
    left = f"the last checkpoint, {kept}, is whole" if kept else "there was no checkpoint yet"
    rates = f"lr={config.lr:g}" if config.base else f"lr={config.lr:g} or muon_lr={config.muon_lr:g}"
    return NotFiniteError(
        f"SFT stopped after {state.global_step} of {state.max_steps} steps: {error}. Lower {rates}, or raise "
        f"warmup_steps={config.warmup_steps}, and give another `out`; {left}"
    )


def _trainer(config: SftConfig, run: Path, examples: pa.Table, batches: list[list[int]], vocabulary: Vocabulary) -> Any:
    """TRL's trainer over the batches, one a step."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or deepspeed, which TRL imports, warns that it had to guess
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback
    from trl import SFTConfig

    from apr.sft.batches import collate
    from apr.sft.callbacks import Lines
    from apr.sft.checked import CheckedTrainer
    from apr.sft.optimizer import MuonWithAdamW

    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    cuda = torch.cuda.is_available()
    loaders = 2 if cuda else 0  # processes that lay out the next batches while a GPU computes

    class Trainer(CheckedTrainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(
                self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator, num_workers=loaders,
                pin_memory=cuda,
            )  # fmt: skip

    start = derive_seed(config.seed, "init")
    optimizer = None  # AdamW, as TRL makes it: of the weights that train, which it may first have to add
    if config.base is None:
        model = new_model(config.model, len(vocabulary), vocabulary.control.pad, start)
        optimizer = MuonWithAdamW(model, config.lr, config.muon_lr, config.weight_decay)
    else:
        model = pretrained_model(config.base, vocabulary, start)
    trainer = Trainer(
        model=model,
        optimizers=(optimizer, None),
        peft_config=adapters(config.lora, vocabulary) if config.lora else None,
        args=SFTConfig(
            output_dir=str(run / "trainer"), num_train_epochs=1, use_cpu=not cuda, bf16=cuda,
            learning_rate=config.lr, lr_scheduler_type="cosine", warmup_steps=config.warmup_steps,
            max_grad_norm=1.0, weight_decay=config.weight_decay,
            gradient_checkpointing=config.activation_checkpointing,
            logging_steps=config.log_every, save_steps=config.checkpoint_every, save_total_limit=1,
            logging_nan_inf_filter=False,  # `CheckedTrainer` stops there
            max_length=config.model.window, dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False, seed=derive_seed(config.seed, "sft") % 2**31, report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset(InMemoryTable(examples)),
        data_collator=partial(collate, pad=vocabulary.control.pad),
        processing_class=_processing_class(run, vocabulary),
    )  # fmt: skip
    let_head_train(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Lines(f"sft {config.solver}"))
    return trainer


def _step_of_share(share: float, steps: int) -> int:
    return max(1, round(share * steps))


def _snapshot(folder: Path, share: float, vocabulary: Vocabulary, card: Card) -> Any:
    """A trainer's callback that saves `folder` once `share` of all steps are made."""
    from transformers import TrainerCallback

    class Snapshot(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            if state.global_step == _step_of_share(share, state.max_steps):
                with whole_folder(folder) as beside:
                    save_checkpoint(beside, model, vocabulary, card.with_facts(share=share))

    return Snapshot()


def new_model(config: ModelConfig, vocabulary: int, pad: int, seed: int) -> Any:
    """A Llama-architecture causal language model with random weights, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=config.hidden, intermediate_size=config.intermediate,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
            max_position_embeddings=config.window, tie_word_embeddings=False, pad_token_id=pad,
            bos_token_id=1, eos_token_id=2, rope_theta=10_000.0, dtype="float32",
        )
    )  # fmt: skip


def _processing_class(run: Path, vocabulary: Vocabulary) -> Any:
    """The tokenizer, which TRL wants for padding; rows are token ids already."""
    from transformers import AutoTokenizer

    folder = run / "tokenizer"
    folder.mkdir(exist_ok=True)
    vocabulary.save(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that the trainer wrote to its end."""
    written = [state.parent for state in (run / "trainer").glob(f"checkpoint-*/{STATE}")]
    return max(written, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _check_whole(folder: Path) -> None:
    """Raise `CheckpointError` if a file of the trainer's checkpoint was cut off or spoilt since, or a weight is not finite."""
    from safetensors import SafetensorError, safe_open

    from apr.sft.checked import OPTIMIZER_STATE, RANDOM_STATE

    if (folder / "optimizer.pt").exists():
        raise CheckpointError(
            f"{folder} holds its optimizer's state as a pickle, as earlier versions wrote it, and pickles are not read: they "
            "may run code. Delete the folder and call the same command again: training starts over. Or finish this run with "
            f"the version that began it. The weights can be used as they are (checkpoint={folder})"
        )
    path = folder / STATE
    try:
        json.loads(path.read_text(encoding="utf-8"))
        for path in trained_files(folder):
            with safe_open(path, "np"):  # compares its length with what its header says
                pass
        for path in (folder / OPTIMIZER_STATE, folder / RANDOM_STATE):
            read_state(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): delete the folder {folder}, and call the same command again; training goes on "
            "from the checkpoint before it, or starts over"
        ) from error
    check_finite_files(trained_files(folder))
