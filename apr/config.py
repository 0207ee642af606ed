"""What can be configured: one typed class for each command. `apr.presets` fills them from YAML files and overrides.

Unknown keys, wrong types and impossible combinations are refused with the key's name. There are no aliases.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from apr.threads.limits import Budgets, Limits
from envs.countdown.env import CountdownSpec
from solvers.search import Heuristic, Order

ProtocolName = Literal["serial", "spawn_join"]
DialectName = Literal["compact", "paper", "chat"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, content: Any) -> Any:
        """YAML reads `yes` and `on` as true, which would pass for 1."""
        for key, value in content.items() if isinstance(content, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
                raise ValueError(f"{key}: {value} is true or false, which does not fit (YAML reads yes, no, on, off so)")
        return content


def _sampleable(temperature: float) -> float:
    """Refused before an engine has started: vLLM would sample at 0.01 what is asked for below it."""
    if 0 < temperature < 0.01:
        raise ValueError("between 0 and 0.01 nothing is sampled exactly: set 0.01 or more, or 0 (greedy) to evaluate")
    return temperature


Temperature = Annotated[float, AfterValidator(_sampleable)]


class Rejection(Strict):
    """Rejection sampling: draw again (beams and all) until a demonstration is solved within `context` tokens; after
    `tries` without one the problem is left out."""

    tries: int = Field(default=10, ge=1)
    context: int = Field(default=4096, ge=1)


class SolverConfig(Strict):
    """A teacher: a solver and its options (see `solvers.search`), and what its demonstrations are conditioned on."""

    protocol: ProtocolName
    beams: list[int] = Field(default=[5], min_length=1, description="root beams, one drawn for each demonstration")
    child_beam_max: int = Field(default=15, ge=1, description="child beams are drawn from root beam to this")
    promising_share: float = Field(default=1.0, ge=0, le=1)
    promising: Literal["per_child", "per_node"] = "per_child"
    child_promising_share: float | None = Field(default=None, ge=0, le=1, description="as promising_share if not given")
    heuristic: Heuristic = "numbers_to_factors"
    order: Order = "canonical"
    prune: Literal["beam", "target"] = Field(default="beam", description="target: keep what is no farther than it")
    duplicates: bool = Field(default=False, description="keep children that differ only in their step, as the code does")
    spawn_depth: int = Field(default=0, ge=0)
    unfold: bool = Field(default=False, description="child threads' searches written serially: the equal teacher")
    value_cap: int | None = Field(default=None, ge=1)
    condition: Literal["none", "context", "children"] = "none"
    context_bin: int = Field(default=512, ge=1, description="context conditions are multiples of it")
    rejection: Rejection | None = None

    @model_validator(mode="after")
    def _spawns(self) -> SolverConfig:
        if (self.protocol == "serial") != (self.spawn_depth == 0 or self.unfold):
            raise ValueError(
                "spawn_depth must be at least 1 for spawn_join, and 0 for the serial protocol unless unfold is set"
            )
        if self.unfold and not self.spawn_depth:
            raise ValueError("unfold writes child threads serially: it needs spawn_depth of at least 1")
        if self.condition == "children" and self.protocol == "serial":
            raise ValueError("condition children needs a protocol that spawns")
        if min(self.beams) < 1:
            raise ValueError("beams must be at least 1")
        return self


class DataConfig(Strict):
    """Problems by split, and demonstrations from each teacher."""

    seed: int = 0
    problems: CountdownSpec = CountdownSpec()
    train: int = Field(default=5000, ge=1, description="problems")
    validation: int = Field(default=200, ge=1)
    test: int = Field(default=1000, ge=1)
    dialect: DialectName = "compact"
    tokenizer: Path | None = Field(
        default=None, description="of dialect chat: the model's folder or GGUF file, or PACKAGE:FILE"
    )
    control_tokens: list[str] | None = Field(
        default=None, min_length=5, max_length=5,
        description="of dialect chat: the tokenizer's own for spawn, msg, </spawn>, join, ret; if none, some are added",
    )  # fmt: skip
    demonstrations_per_problem: int = Field(default=1, ge=1)
    solvers: dict[str, SolverConfig]
    shard_rows: int = Field(default=10_000, ge=1, description="problems in a file; all but the last hold so many")
    workers: int | None = Field(default=None, ge=1, description="processes; changes no result; default: all cores")
    out: Path = Path("runs/data")

    @model_validator(mode="after")
    def _names(self) -> DataConfig:
        for name in self.solvers:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "problems":
                raise ValueError(
                    f"solvers: {name!r} cannot name a part of a data set: letters, digits and _, not `problems`"
                )
        return self

    @model_validator(mode="after")
    def _tokenizer(self) -> DataConfig:
        if (self.dialect == "chat") != (self.tokenizer is not None):
            raise ValueError("dialect chat needs `tokenizer`, that of the model to be trained; others have their own")
        if self.control_tokens is not None and self.tokenizer is None:
            raise ValueError("control_tokens are those of a `tokenizer`, which only dialect chat has")
        return self


class ModelConfig(Strict):
    """A Llama-architecture model trained from scratch. `window`: tokens in one context."""

    layers: int = Field(default=4, ge=1)
    hidden: int = Field(default=128, ge=8)
    heads: int = Field(default=4, ge=1)
    intermediate: int = Field(default=512, ge=8)
    window: int = Field(default=160, ge=16)

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class LoraConfig(Strict):
    """Low-rank adapters (arXiv 2106.09685) on the projections inside the layers; all other weights are frozen."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, le=0, description="fixed: the loss needs the sampler's own distribution")


class SftConfig(Strict):
    """Supervised fine-tuning of one model, new or pretrained, on one teacher's demonstrations."""

    seed: int = 0
    data: Path = Path("runs/data")
    solver: str = "spawn_join"
    base: Path | None = Field(
        default=None, description="the pretrained model to start from: its folder or GGUF file, or PACKAGE:FILE"
    )
    model: ModelConfig = Field(default=ModelConfig(), description="from scratch; with a base only its window counts")
    lora: LoraConfig | None = Field(default=None, description="of a base: train these alone, and merge them at the end")
    only_solved: bool = Field(default=False, description="leave out demonstrations without a solution")
    overlong: Literal["head", "drop"] = Field(default="head", description="rows beyond the window: keep head, or drop")
    tokens: int = Field(default=6_000_000, ge=1, description="to train on; rows are gone through as often as it takes")
    batch_tokens: int = Field(default=2048, ge=64, description="padded tokens in a batch of rows of similar length")
    lr: float = Field(default=2e-3, gt=0, description="of AdamW: embeddings, norms, the output layer; all of a base")
    muon_lr: float = Field(default=2e-2, gt=0, description="of Muon: the matrices inside the layers; unused with a base")
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    snapshots: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[], description="shares of the training after which a checkpoint is kept, to see when it levelled off"
    )
    activation_checkpointing: bool = False
    threads: int = Field(default=2, ge=1)
    out: Path = Path("runs/sft")

    @model_validator(mode="after")
    def _base(self) -> SftConfig:
        if self.base is None and self.lora is not None:
            raise ValueError("lora adapts a pretrained model: set `base`, or leave it out")
        if self.snapshots and self.lora is not None:
            raise ValueError("snapshots would have to merge the adapters of lora, which ends their training: leave out either")
        if self.base is not None and self.lr > 1e-3:
            raise ValueError(
                f"lr ({self.lr:g}) is for models from scratch and would undo what a base has learned: set 1e-5 to 1e-3"
            )
        return self


class EngineConfig(Strict):
    """The sampling engine. `kv_cache_mib` bounds its cache. Of kind `endpoint` (a server, for evaluation) only `url`, `model`,
    `timeout` and `max_num_seqs` count."""

    kind: Literal["vllm", "tiny", "endpoint"] = "vllm"
    url: str | None = Field(default=None, description="of kind endpoint: http://HOST:PORT, where `vllm serve` listens")
    model: str | None = Field(default=None, description="of kind endpoint: its name there; if not given, the only one")
    timeout: float = Field(default=600.0, gt=0, description="of kind endpoint: seconds without a token before one is lost")
    kv_cache_mib: int = Field(default=512, ge=1)
    max_num_seqs: int = Field(default=256, ge=1, description="requests served at once; more wait")
    block_size: int = Field(default=32, ge=1)
    tensor_parallel: int = Field(default=1, ge=1, description="devices that one copy of the model is divided among")
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _endpoint(self) -> EngineConfig:
        if self.kind == "endpoint" and self.url is None:
            raise ValueError(
                "engine.kind=endpoint needs engine.url, the address of the server: set it, such as "
                "engine.url=http://localhost:8000"
            )
        if self.kind != "endpoint" and (self.url is not None or self.model is not None):
            raise ValueError(
                "engine.url and engine.model are of a server, and only engine.kind=endpoint asks one: set "
                "engine.kind=endpoint as well, or leave them out"
            )
        if self.url is not None and not re.fullmatch(r"https?://[^/\s]+", self.url):
            raise ValueError(f"engine.url ({self.url}) must be http://HOST:PORT, without a path such as /v1")
        return self


class ConditionConfig(Strict):
    """What prompts ask for: `children` per spawn, or a `context` within so many tokens. Only models that were trained on
    conditioned demonstrations heed it."""

    kind: Literal["context", "children"]
    value: int = Field(ge=0)


class ClusterConfig(Strict):
    """Where RL and evaluation run: `none` is one process without Ray; `local` starts a Ray; else the address of one, or
    `auto`. CPUs and GPUs are those of each engine and of each rank of the learner."""

    address: str = "none"
    engines: int = Field(default=1, ge=1, description="copies of the model that sample")
    engine_cpus: float = Field(default=1, ge=0)
    engine_gpus: float = Field(default=0, ge=0)
    ranks: int = Field(default=1, ge=1, description="processes that share the learner's work")
    learner_cpus: float = Field(default=1, ge=0)
    learner_gpus: float = Field(default=0, ge=0)
    routing: Literal["trace", "spread"] = Field(
        default="trace", description="trace: a trace's strands go to one engine; spread: children to the least busy one"
    )
    restarts: int = Field(default=10, ge=0, description="of lost engines and learners in a run, before it ends")
    timeout: float = Field(default=300.0, gt=0, description="seconds to wait for actors to start")
    reply_timeout: float = Field(default=1800.0, gt=0, description="seconds to wait for the reply of one that runs")

    @model_validator(mode="after")
    def _together(self) -> ClusterConfig:
        if self.engines > 1 and self.address == "none":
            raise ValueError("several engines run on Ray only: set cluster.address (local starts one), or cluster.engines=1")
        return self


class EvalConfig(Strict):
    """Evaluation of one checkpoint. `samples` > 1 gives cons@n and pass@n."""

    seed: int = 0
    data: Path = Path("runs/data")
    split: Literal["train", "validation", "test"] = "test"
    checkpoint: Path = Field(default=Path("runs/sft"), description="a checkpoint, or a folder with peft's adapter of one")
    base: Path | None = Field(default=None, description="of an adapter: the model that it adapts, if it names none here")
    protocol: ProtocolName = "spawn_join"
    dialect: DialectName | None = Field(default=None, description="if the checkpoint does not say")
    problems: int | None = Field(default=None, ge=1, description="the first so many; all if not given")
    samples: int = Field(default=1, ge=1)
    temperature: Temperature = Field(default=0.0, ge=0)
    condition: ConditionConfig | None = None
    limits: Limits = Limits()
    budgets: Budgets = Budgets()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    in_flight: int = Field(default=64, ge=1, description="attempts running at once")
    out: Path = Path("runs/eval")

    @model_validator(mode="after")
    def _greedy(self) -> EvalConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same: set temperature above 0 or samples=1")
        if self.engine.kind == "endpoint" and self.cluster.address != "none":
            raise ValueError("engine.kind=endpoint is a server already, with devices of its own: leave cluster.address out")
        return self


class SoftBudget(Strict):
    """A penalty on successes: `weight` times the relative excess over `budget`, at most `weight`."""

    budget: int = Field(ge=1)
    weight: float = Field(gt=0, le=1)


class Bonus(Strict):
    """A success earns `weight` times min(1, measure / `cap`)."""

    cap: float = Field(gt=0)
    weight: float = Field(gt=0)


class RewardConfig(Strict):
    """Success = correct and within the hard budgets; soft terms only separate successes."""

    budgets: Budgets = Budgets()
    soft_context: SoftBudget | None = None
    soft_span: SoftBudget | None = None
    soft_work: SoftBudget | None = None
    acceleration: Bonus | None = Field(
        default=None, description="1 - span_sampled / work_sampled; ThreadWeaver (arXiv 2512.07843): cap 0.2, weight 0.1"
    )
    concurrency: Bonus | None = Field(
        default=None, description="threads active on average; AsyncThink (arXiv 2510.26658): cap is tau times its pool"
    )

    @model_validator(mode="after")
    def _success_pays(self) -> RewardConfig:
        soft = {name: getattr(self, name) for name in ("soft_context", "soft_span", "soft_work")}
        weights = {f"{name}.weight": term.weight for name, term in soft.items() if term is not None}
        if sum(weights.values()) >= 1:
            raise ValueError(
                f"the sum of {', '.join(weights)} is {sum(weights.values()):g}; it must be less than 1, or a success over "
                "its soft budgets is worth no more than a failure: lower them"
            )
        return self


class LearnerConfig(Strict):
    """The optimiser's side of RL. `row_tokens` and `tokens_per_pass` shape the forward passes; they change no result."""

    lr: float = Field(default=2e-4, gt=0)
    lr_schedule: Literal["constant", "linear"] = Field(default="constant", description="linear: down to 0 at the end")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    inner_steps: int = Field(default=1, ge=1, description="optimiser steps on each batch of traces")
    surrogate: Literal["clip", "cispo"] = "clip"
    ratio: Literal["token", "strand"] = Field(default="token", description="strand: GSPO's, mean over a strand's tokens")
    clip_low: float = Field(default=0.2, gt=0, le=1)
    clip_high: float = Field(default=0.2, gt=0)
    importance_cap: float = Field(default=2.0, ge=1)
    kl_weight: float = Field(default=0.0, ge=0, description="of the k3 KL divergence to the checkpoint RL began from")
    parallel: Literal["plain", "zero1", "zero2", "zero3"] = Field(default="plain", description="DeepSpeed ZeRO stages")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the compute; weights stay float32")
    lora: LoraConfig | None = None
    activation_checkpointing: bool = False
    row_tokens: int = Field(default=256, ge=16, description="of a packed row; longer samples get rows of their own")
    tokens_per_pass: int = Field(default=8192, ge=64)
    threads: int = Field(default=2, ge=1)


class RlConfig(Strict):
    """GRPO over spawned threads."""

    seed: int = 0
    data: Path = Path("runs/data")
    checkpoint: Path = Path("runs/sft/checkpoint")
    protocol: ProtocolName = "spawn_join"
    dialect: DialectName | None = Field(default=None, description="if the checkpoint does not say")
    steps: int = Field(default=30, ge=1)
    problems_per_step: int = Field(default=32, ge=1)
    group_size: int = Field(default=8, ge=2, description="traces of one problem; 1 gives no advantage")
    temperature: Temperature = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, ge=1, le=1, description="fixed: below 1 the sampler's logprobs are not its own")
    condition: ConditionConfig | None = None
    limits: Limits = Limits()
    reward: RewardConfig = RewardConfig()
    weighting: Literal["token", "strand", "trace", "constant"] = "token"
    divide_by_deviation: bool = False
    shuffle_advantages: bool = Field(default=False, description="null control: nothing can be learned")
    learner: LearnerConfig = LearnerConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    weight_sync: Literal["tensors", "file", "nccl", "ipc"] = Field(
        default="tensors", description="nccl, ipc: from GPU to GPU by vLLM's own weight transfer; see docs/cluster.md"
    )
    staleness: int = Field(default=0, ge=0, description="updates that rollouts may lag behind; 0: none is made meanwhile")
    on_update: Literal["finish", "recompute"] = Field(
        default="finish", description="strands in flight end before an update, or go on after it with their KV recomputed"
    )
    in_flight: int = Field(default=64, ge=1)
    validate_every: int = Field(default=10, ge=1)
    validate_problems: int = Field(default=100, ge=0)
    checkpoint_every: int = Field(default=5, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    parity_mean: float = Field(default=1e-4, gt=0, description="largest mean |logprob gap| allowed before an update")
    parity_max: float = Field(default=1e-2, gt=0)
    max_silent_steps: int = Field(default=10, ge=1, description="steps in a row without signal before the run stops")
    max_lost_share: float = Field(default=0.05, ge=0, le=1, description="of a step's traces lost with their engine")
    traces_per_step: int = Field(default=8, ge=0, description="sampled traces kept for the viewer")
    tensorboard: bool = True
    wandb: str | None = Field(default=None, description="a Weights & Biases project to log to as well")
    out: Path = Path("runs/rl")

    @model_validator(mode="after")
    def _joint(self) -> RlConfig:
        if self.engine.kind == "endpoint":
            raise ValueError(
                "engine.kind=endpoint cannot take new weights, which RL sends at each step: they belong to the server. Set "
                "engine.kind=vllm; an endpoint is for `apr eval`"
            )
        if self.limits.seconds is not None:
            raise ValueError("limits.seconds may not enter RL (results would depend on the machine): leave it out")
        budget = self.reward.budgets.context
        if budget is not None and budget > self.limits.context:
            raise ValueError(f"reward.budgets.context ({budget}) exceeds limits.context ({self.limits.context})")
        if self.protocol == "spawn_join" and self.limits.depth < 1:
            raise ValueError("protocol spawn_join needs limits.depth of at least 1")
        if (self.learner.parallel != "plain" or self.cluster.ranks > 1) and self.cluster.address == "none":
            raise ValueError(
                "cluster.ranks above 1 and learner.parallel need Ray: set cluster.address=local, or a cluster's address"
            )
        if self.learner.lora and self.learner.parallel == "zero3":
            raise ValueError("learner.lora leaves too little to divide for zero3: set learner.parallel to zero2 or less")
        return self

    @model_validator(mode="after")
    def _transfer(self) -> RlConfig:
        """What vLLM's own weight transfer needs to be where."""
        c, way = self.cluster, self.weight_sync
        places = {
            "nccl": min(c.engine_gpus, c.learner_gpus) >= 1,
            "ipc": min(c.engine_gpus, c.learner_gpus) > 0 and c.engine_gpus + c.learner_gpus <= 1
            and (c.engines, c.ranks, self.engine.tensor_parallel) == (1, 1, 1),
        }  # fmt: skip
        if way in places and not (places[way] and self.engine.kind == "vllm" and c.address != "none"):
            raise ValueError(
                f"weight_sync={way} is vLLM's own, from GPU to GPU between processes: set engine.kind=vllm, cluster.address, "
                "cluster.engine_gpus and learner_gpus (nccl: 1 or more each; ipc: 0.5 each, for one engine and one rank that "
                "share a GPU, with engine.tensor_parallel=1), or set weight_sync=tensors or file"
            )
        return self


class QuickstartConfig(Strict):
    """The whole path in one command, each stage with its preset."""

    seed: int = 0
    preset: str = "tiny_cpu"
    start: Literal["data", "sft"] = Field(default="data", description="`sft` begins with the shipped SFT checkpoints")
    sampled_problems: int = Field(default=250, ge=1, description="problems for cons@n and pass@n")
    samples: int = Field(default=4, ge=2)
    stages: dict[Literal["data", "sft", "rl", "eval"], list[str]] = Field(default={}, description="overrides by stage")
    out: Path = Path("runs/quickstart")
