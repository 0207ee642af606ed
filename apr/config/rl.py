"""`apr rl`: the loop, its reward and its learner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from apr.config.base import Strict, Temperature
from apr.config.engine import ClusterConfig, ConditionConfig, EngineConfig, check_protocol
from apr.config.env import ENV_OF_DATA, EnvOfData
from apr.config.sft import LoraConfig
from apr.errors import ConfigError
from apr.idle import Idle
from apr.threads.limits import Budgets, Limits
from apr.tokens.control import JoinRule, ProtocolName
from apr.user_code import NAMED, allow, file_of


class SoftBudget(Strict):
    """A penalty on successes: `weight` times the relative excess over `budget`, at most `weight`."""

    budget: int = Field(ge=1, description="cost above which a success earns less")
    weight: float = Field(gt=0, le=1, description="the most that a success loses")


class Bonus(Strict):
    """A success earns `weight` times min(1, measure / `cap`)."""

    cap: float = Field(gt=0, description="measure at which the bonus is full")
    weight: float = Field(gt=0, description="the most that a success gains")


class RewardConfig(Strict):
    """Success = correct and within the hard budgets; soft terms only separate successes.

    `function` has the last word: it is given the trace and the verdict, and what it returns is the reward.
    """

    budgets: Budgets = Budgets()
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="verifier's score from which an answer is correct; default: its own verdict",
    )
    function: str | None = Field(
        default=None,
        description="PATH.py:NAME, a function of trace and verdict that returns the reward; no soft terms then",
    )
    soft_context: SoftBudget | None = Field(default=None, description="penalty for tokens in any one strand's context")
    soft_span: SoftBudget | None = Field(default=None, description="penalty for latency, in sampled tokens")
    soft_work: SoftBudget | None = Field(default=None, description="penalty for tokens of the whole trace")
    acceleration: Bonus | None = Field(
        default=None,
        description="1 - span_sampled / work_sampled; ThreadWeaver (arXiv 2512.07843): cap 0.2, weight 0.1",
    )
    concurrency: Bonus | None = Field(
        default=None, description="threads active on average; AsyncThink (arXiv 2510.26658): cap is tau times its pool"
    )

    @field_validator("function")
    @classmethod
    def _named(cls, function: str | None, info: ValidationInfo) -> str | None:
        if function is not None and file_of(function) is None:
            raise ValueError(f"{function!r} is not of the form PATH.py:NAME")
        if function is not None and info.context == NAMED:
            allow(function)
        return function

    @model_validator(mode="after")
    def _function_alone(self) -> RewardConfig:
        terms = ("soft_context", "soft_span", "soft_work", "acceleration", "concurrency")
        if self.function is not None and (idle := [name for name in terms if getattr(self, name) is not None]):
            raise ValueError(
                f"{', '.join(idle)} would do nothing beside `function`, which returns the whole reward: leave either out"
            )
        return self

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

    lr: float = Field(default=2e-4, gt=0, description="learning rate of AdamW")
    lr_schedule: Literal["constant", "linear"] = Field(
        default="constant", description="linear: down to 0 at `lr_steps`"
    )
    lr_steps: int | None = Field(
        default=None,
        ge=1,
        description="step at which the linear schedule reaches 0; default: the `steps` of the run's start",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    inner_steps: int = Field(default=1, ge=1, description="rounds over each step's traces")
    minibatches: int = Field(default=1, ge=1, description="parts of a step's traces, with an optimiser step for each")
    surrogate: Literal["clip", "cispo"] = Field(
        default="clip", description="clip: PPO's clipped objective; cispo: the clipped weight of CISPO"
    )
    ratio: Literal["token", "strand"] = Field(
        default="token", description="strand: GSPO's, mean over a strand's tokens"
    )
    clip_low: float = Field(default=0.2, gt=0, le=1, description="ratios below 1 - clip_low are clipped")
    clip_high: float = Field(default=0.2, gt=0, description="ratios above 1 + clip_high are clipped")
    importance_cap: float = Field(
        default=2.0, ge=1, description="largest importance weight of tokens that older weights sampled"
    )
    kl_weight: float = Field(default=0.0, ge=0, description="of the k3 KL divergence to the checkpoint RL began from")
    parallel: Literal["plain", "zero1", "zero2", "zero3"] = Field(default="plain", description="DeepSpeed ZeRO stages")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the compute; weights stay float32")
    lora: LoraConfig | None = Field(default=None, description="train adapters alone")
    activation_checkpointing: bool = Field(default=False, description="compute activations twice, to save memory")
    row_tokens: int = Field(default=256, ge=16, description="of a packed row; longer samples get rows of their own")
    tokens_per_pass: int = Field(default=8192, ge=64, description="tokens in one forward pass; bounds memory")
    threads: int | None = Field(
        default=None, ge=1, description="of torch; null: 1 or 2, by the cores free at the start"
    )

    def idle(self) -> Iterator[Idle]:
        if self.lr_schedule == "constant":
            yield Idle("lr_steps", "lr_schedule", "set learner.lr_schedule=linear as well, or leave them out")


class RlConfig(Strict):
    """GRPO over spawned threads."""

    seed: int = Field(default=0, description="of the problems' order and of sampling")
    data: Path = Field(default=Path("runs/data"), description="data folder, as `apr data generate` writes it")
    env: EnvOfData | None = Field(default=None, description=ENV_OF_DATA)
    checkpoint: Path = Field(
        default=Path("runs/sft/checkpoint"),
        description="to start from: a checkpoint, or the folder of its SFT or RL run",
    )
    protocol: ProtocolName = Field(default="spawn_join", description="how the model spawns and joins")
    join: JoinRule = Field(
        default="all",
        description="of spawn_join: parents wait for all children, or for the first with a message, and cancel the others",
    )
    speller: str | None = Field(default=None, description="if the checkpoint does not say")
    steps: int = Field(default=30, ge=1, description="training steps in all")
    problems_per_step: int = Field(default=32, ge=1, description="problems drawn for each step")
    group_size: int = Field(default=8, ge=2, description="traces of one problem; 1 gives no advantage")
    temperature: Temperature = Field(default=1.0, gt=0, description="of sampling")
    top_p: float = Field(default=1.0, ge=1, le=1, description="fixed: below 1 the sampler's logprobs are not its own")
    condition: ConditionConfig | None = Field(
        default=None, description="what prompts ask for, if the model was trained on such prompts"
    )
    limits: Limits = Limits()
    reward: RewardConfig = RewardConfig()
    redraws: int = Field(
        default=0, ge=0, le=100, description="rounds per step that draw problems in place of groups without a signal (DAPO); "
        "0: such groups count with advantage 0 (GRPO)"
    )  # fmt: skip
    weighting: Literal["token", "strand", "trace", "constant"] = Field(
        default="token",
        description="whether every token, strand or trace weighs the same; constant: tokens, over a constant",
    )
    constant: int = Field(default=1024, ge=1, description="of weighting=constant: tokens that a trace is divided by")
    divide_by_deviation: bool = Field(
        default=False, description="divide advantages by their group's standard deviation"
    )
    shuffle_advantages: bool = Field(default=False, description="null control: nothing can be learned")
    learner: LearnerConfig = LearnerConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    weight_sync: Literal["tensors", "file", "nccl", "ipc"] = Field(
        default="tensors", description="nccl, ipc: from GPU to GPU by vLLM's own weight transfer; see docs/cluster.md"
    )
    staleness: int = Field(
        default=0, ge=0, description="updates that rollouts may lag behind; 0: none is made meanwhile"
    )
    on_update: Literal["finish", "recompute"] = Field(
        default="finish",
        description="strands in flight end before an update, or go on after it with their KV recomputed",
    )
    in_flight: int = Field(default=64, ge=1, description="traces running at once")
    validate_every: int = Field(default=10, ge=1, description="steps between two validations")
    validate_problems: int = Field(default=100, ge=0, description="validation problems, sampled once each; 0: none")
    checkpoint_every: int = Field(default=5, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints to keep")
    parity_mean: float = Field(default=1e-4, gt=0, description="largest mean |logprob gap| allowed before an update")
    parity_max: float = Field(default=1e-2, gt=0, description="largest single |logprob gap| allowed before an update")
    max_silent_steps: int = Field(default=10, ge=1, description="steps in a row without signal before the run stops")
    max_lost_share: float = Field(default=0.05, ge=0, le=1, description="of a step's traces lost with their engine")
    traces_per_step: int = Field(default=8, ge=0, description="sampled traces kept for the viewer")
    tensorboard: bool = Field(default=True, description="write TensorBoard files as well")
    wandb: str | None = Field(default=None, description="a Weights & Biases project to log to as well")
    out: Path = Field(default=Path("runs/rl"), description="folder of the run")

    def idle(self) -> Iterator[Idle]:
        if self.weighting != "constant":
            yield Idle("constant", "weighting", "set weighting=constant (Dr.GRPO) as well, or leave them out")

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
        check_protocol(self.protocol, self.join, self.engine)
        if self.protocol != "serial" and self.limits.depth < 1:
            raise ValueError(f"protocol {self.protocol} needs limits.depth of at least 1")
        traces = self.problems_per_step * self.group_size
        if self.learner.minibatches > traces:
            raise ValueError(
                f"learner.minibatches ({self.learner.minibatches}) exceeds the {traces} traces of a step (problems_per_step x "
                "group_size): lower it"
            )
        horizon = self.learner.lr_steps if self.learner.lr_schedule == "linear" else None
        if horizon is not None and self.steps > horizon:
            raise ValueError(
                f"steps ({self.steps}) goes beyond learner.lr_steps ({horizon}), where the linear schedule has reached 0 and "
                f"nothing more is learned: set learner.lr_steps={self.steps} (the rate then rises at once to the longer "
                "schedule's), or learner.lr_schedule=constant with learner.lr_steps=null"
            )
        if (self.learner.parallel != "plain" or self.cluster.ranks > 1) and self.cluster.address == "none":
            raise ValueError(
                "cluster.ranks above 1 and learner.parallel need Ray: set cluster.address=local, or a cluster's address"
            )
        if self.learner.lora and self.learner.parallel == "zero3":
            raise ValueError(
                "learner.lora leaves too little to divide for zero3: set learner.parallel to zero2 or less"
            )
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


def refuse_idle(config: RlConfig) -> None:
    """Raise `ConfigError` for options of a new run that cannot act. Runs of earlier versions may have them, and stay readable.

    With one update per step the ratio new / old is 1, so that nothing which bounds it does anything.
    """
    learner = config.learner
    if learner.inner_steps * learner.minibatches > 1:
        return
    idle = [
        f"learner.{name}={value:g}" if isinstance(value, float) else f"learner.{name}={value}"
        for name in ("surrogate", "ratio", "clip_low", "clip_high")
        if (value := getattr(learner, name)) != LearnerConfig.model_fields[name].default
    ]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} cannot act with one update per step, where no probability has moved yet: set "
            "learner.minibatches (DAPO 16, GSPO 4, CISPO 16) or learner.inner_steps above 1, or leave them out"
        )
