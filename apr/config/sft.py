"""`apr sft`: the model, its teacher, how long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from apr.config.base import Strict
from apr.config.env import ENV_OF_DATA, EnvOfData
from apr.idle import Idle


class ModelConfig(Strict):
    """A Llama-architecture model trained from scratch. `window`: tokens in one context."""

    layers: int = Field(default=4, ge=1, description="transformer layers")
    hidden: int = Field(default=128, ge=8, description="width of the residual stream")
    heads: int = Field(default=4, ge=1, description="attention heads; they divide hidden")
    intermediate: int = Field(default=512, ge=8, description="width of the feed-forward layers")
    window: int = Field(
        default=160, ge=16, description="tokens in one context; longer rows are treated as overlong says"
    )

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class LoraConfig(Strict):
    """Low-rank adapters (arXiv 2106.09685) on the projections inside the layers; all other weights are frozen."""

    rank: int = Field(default=16, ge=1, description="rank of the adapters")
    alpha: float = Field(default=32, gt=0, description="scale of the adapters; they act at alpha / rank")
    dropout: float = Field(default=0.0, ge=0, le=0, description="fixed: the loss needs the sampler's own distribution")


class SftConfig(Strict):
    """Supervised fine-tuning of one model, new or pretrained, on one teacher's demonstrations."""

    seed: int = Field(default=0, description="of the weights and of the order of rows")
    data: Path = Field(default=Path("runs/data"), description="data folder, as `apr data generate` writes it")
    env: EnvOfData | None = Field(default=None, description=ENV_OF_DATA)
    solver: str = Field(default="spawn_join", description="teacher whose demonstrations are learned")
    base: Path | None = Field(
        default=None,
        description="the pretrained model to start from: its folder, that of its run, its GGUF file, or PACKAGE:FILE",
    )
    model: ModelConfig = Field(default=ModelConfig(), description="from scratch; with a base only its window counts")
    lora: LoraConfig | None = Field(default=None, description="of a base: train these alone, and merge them at the end")
    only_solved: bool = Field(default=False, description="leave out demonstrations without a solution")
    overlong: Literal["head", "drop"] = Field(default="head", description="rows beyond the window: keep head, or drop")
    tokens: int = Field(default=6_000_000, ge=1, description="to train on; rows are gone through as often as it takes")
    batch_tokens: int = Field(default=2048, ge=64, description="padded tokens in a batch of rows of similar length")
    lr: float = Field(default=2e-3, gt=0, description="of AdamW: embeddings, norms, the output layer; all of a base")
    muon_lr: float = Field(default=2e-2, gt=0, description="of Muon: the matrices inside the layers; not with a base")
    warmup_steps: int = Field(default=50, ge=0, description="steps in which the learning rate rises")
    weight_decay: float = Field(default=0.01, ge=0, description="of all matrices")
    log_every: int = Field(default=50, ge=1, description="steps between two lines of progress")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between two checkpoints")
    snapshots: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[], description="shares of the training after which a checkpoint is kept, to see when it levelled off"
    )
    activation_checkpointing: bool = Field(default=False, description="compute activations twice, to save memory")
    threads: int | None = Field(
        default=None, ge=1, description="of torch; null: 1 or 2, by the cores free at the start"
    )
    out: Path = Field(default=Path("runs/sft"), description="folder of the run")

    def idle(self) -> Iterator[Idle]:
        if self.base is None:
            yield Idle(
                "lora", "base", "set `base` to the pretrained model that the adapters are for, or leave them out"
            )
            return
        for option in ("model.layers", "model.hidden", "model.heads", "model.intermediate", "muon_lr"):
            yield Idle(option, "base", "set base=null to train from scratch, or leave them out")

    @model_validator(mode="after")
    def _base(self) -> SftConfig:
        if self.snapshots and self.lora is not None:
            raise ValueError(
                "snapshots would have to merge the adapters of lora, which ends their training: leave out either"
            )
        if self.base is not None and self.lr > 1e-3:
            raise ValueError(
                f"lr ({self.lr:g}) is for models from scratch and would undo what a base has learned: set 1e-5 to 1e-3"
            )
        return self
