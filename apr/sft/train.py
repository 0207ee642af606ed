"""`apr sft`: supervised fine-tuning of a small Llama from scratch with TRL, on pre-tokenised rows of demonstrations."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from apr.config import ModelConfig, SftConfig
from apr.data.store import demonstrations_file, read_demonstrations
from apr.errors import CheckpointError, DataError
from apr.runs import commit, file_hash, run_directory, whole_folder
from apr.seeds import derive_seed
from apr.sft.rows import IGNORED, rows
from apr.tokens.compact import CompactDialect

CHECKPOINT = "checkpoint"
CARD = "apr_card.json"


def train(config: SftConfig) -> Path:
    """Train, or go on from the last checkpoint of an interrupted run; returns the finished checkpoint's folder."""
    import torch
    from datasets import Dataset
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    finished = config.out / CHECKPOINT
    if finished.is_dir():
        return finished
    source = demonstrations_file(config.data, config.solver)
    examples, skipped = examples_of(config, source)
    with run_directory(config.out, config, data_hash=file_hash(source)) as run:
        torch.set_num_threads(config.threads)
        vocabulary = CompactDialect().vocabulary
        model = new_model(config.model, len(vocabulary), vocabulary.control.pad, derive_seed(config.seed, "init"))
        tokens = sum(len(example["input_ids"]) for example in examples)
        print(
            f"sft {config.solver}: {len(examples)} rows, {tokens:,} tokens ({skipped} over-long rows {config.overlong})"
        )
        arguments = SFTConfig(
            output_dir=str(run / "trainer"), num_train_epochs=config.epochs, use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=config.batch_rows, learning_rate=config.lr, lr_scheduler_type="cosine",
            warmup_steps=config.warmup_steps, weight_decay=config.weight_decay, max_grad_norm=1.0,
            adam_beta2=0.95, logging_steps=config.log_every, save_steps=config.checkpoint_every, save_total_limit=1,
            bf16=torch.cuda.is_available(), gradient_checkpointing=False, max_length=config.model.window,
            train_sampling_strategy="group_by_length", seed=derive_seed(config.seed, "sft") % 2**31,
            report_to="none", dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
            disable_tqdm=None, dataloader_num_workers=0,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(examples),
            processing_class=_processing_class(run),
        )
        trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
        with whole_folder(finished) as folder:
            card = {"solver": config.solver, "trained": ["sft"], "data_hash": file_hash(source), "commit": commit()}
            save_checkpoint(folder, trainer.model, card)
            (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    return finished


def examples_of(config: SftConfig, source: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows with labels that fit the window, in a seeded order, and how many were cut or dropped."""
    examples, over = [], 0
    for trace in read_demonstrations(source):
        if config.only_solved and not trace.correct:
            continue
        for row in rows(trace):
            if len(row.ids) > config.model.window:
                over += 1
                if config.overlong == "drop":
                    continue
            labels = row.labels[: config.model.window]
            if any(label != IGNORED for label in labels):
                examples.append({"input_ids": list(row.ids[: config.model.window]), "labels": labels})
    if not examples:
        raise DataError(f"{source} holds no row to train on: loosen only_solved or overlong, or make more data")
    random.Random(derive_seed(config.seed, "rows")).shuffle(examples)
    return examples, over


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


def save_checkpoint(folder: Path, model: Any, card: dict[str, Any]) -> None:
    """A Hugging Face folder: weights, model config, tokenizer, the vocabulary's hash, and where it came from."""
    model.save_pretrained(folder)
    CompactDialect().vocabulary.save(folder)
    (folder / CARD).write_text(json.dumps(card, indent=1))


def read_card(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: its teacher, and the stages that trained it. Empty if it says nothing."""
    path = folder / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is corrupt ({error}): train or export the checkpoint again") from error
    return card


def _processing_class(run: Path) -> Any:
    """The tokenizer, which TRL wants for padding; rows are token ids already."""
    from transformers import AutoTokenizer

    folder = run / "tokenizer"
    folder.mkdir(exist_ok=True)
    CompactDialect().vocabulary.save(folder)
    return AutoTokenizer.from_pretrained(folder)
