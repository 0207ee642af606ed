"""DAPO, GSPO and CISPO do what defines them, from the preset to the gradient, beside GRPO on the same traces."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from test_learner import ANY_GAP, sample
from torch import Tensor
from toys import SPAWNING, make_task, metrics, rl_config

import rl.losses
from apr.config import LearnerConfig, RlConfig
from apr.errors import ConfigError
from apr.presets import load, preset
from apr.rollout import Job
from apr.threads.trace import Outcome, StopReason, Trace
from rl import learner as learner_module
from rl.launch import launch
from rl.learner import Learner
from rl.loop import learning_rate, minibatches_of
from rl.losses import LossTerms, policy_loss
from rl.rollouts import Rollout, problems_of, roll_out
from rl.samples import Sample

UPDATES = 4  # of a step, here
EXACT = {"rtol": 1e-5, "atol": 1e-9}


def configured(*names: str) -> RlConfig:
    return load(RlConfig, [preset("rl", name) for name in names])


class Seen(NamedTuple):
    """What one call of the loss was given, and the gradient that reached each token's logprob. Tensors [tokens]."""

    ratio: Tensor
    advantages: Tensor
    weights: Tensor
    strands: Tensor
    gradient: Tensor


@pytest.fixture
def make_learner(make_checkpoint: Callable[[int], Path]) -> Callable[[LearnerConfig], Learner]:
    def make(config: LearnerConfig) -> Learner:
        fixed = {"threads": 1, "max_grad_norm": 1e9, "row_tokens": 256, "tokens_per_pass": 1 << 20, "kl_weight": 0.0}
        return Learner(make_checkpoint(0), config.model_copy(update=fixed), 1.0)

    return make


def batch_of(learner: Learner) -> list[list[Sample]]:
    """`UPDATES` minibatches of 16 samples at equal weights, which the learner's own weights sampled."""
    rng = random.Random(0)
    made = [replace(one, weights=[1e-3] * len(one.trained)) for one in (sample(rng) for _ in range(16 * UPDATES))]
    own = []
    for one in made:
        with torch.no_grad():
            logprobs = learner.scorer(learner_module.Pass([[one]], torch.device("cpu"))).tolist()
        own.append(replace(one, logprobs=logprobs, advantages=[rng.choice((-1.0, 1.0))] * len(one.trained)))
    return [own[first::UPDATES] for first in range(UPDATES)]


def second_update(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> tuple[Seen, dict[str, float]]:
    """The second of a step's updates, the first whose ratios are not 1; and the step's metrics. The first update is the same
    whatever the algorithm, so that all of them see the same ratios here."""
    seen: list[Seen] = []

    def spied(new: Tensor, old: Tensor, sampler: Tensor, advantages: Tensor, weights: Tensor, *more: Any) -> LossTerms:
        terms = policy_loss(new, old, sampler, advantages, weights, *more)
        (gradient,) = torch.autograd.grad(terms.loss, new, retain_graph=True)
        seen.append(Seen((new - old).exp().detach(), advantages, weights, more[1], gradient))
        return terms

    monkeypatch.setattr(learner_module, "policy_loss", spied)
    found = asyncio.run(learner.update(batch_of(learner), 3e-3, ANY_GAP))
    assert len(seen) == found["loss/updates"] == UPDATES
    torch.testing.assert_close(seen[0].ratio, torch.ones_like(seen[0].ratio))
    return seen[1], found


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    return ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))


@pytest.fixture
def grpo(make_learner: Callable[[LearnerConfig], Learner], monkeypatch: pytest.MonkeyPatch) -> Seen:
    """GRPO's second update: tokens beyond 0.8 and 1.2 have no gradient, the others w A r."""
    seen, found = second_update(make_learner(LearnerConfig()), monkeypatch)
    cut = clipped(seen.ratio, seen.advantages, 0.2, 0.2)
    assert cut.any() and found["loss/clipped_share"] > 0
    torch.testing.assert_close(seen.gradient, -seen.weights * seen.advantages * seen.ratio * ~cut, **EXACT)
    return seen


def test_dapo_lets_good_tokens_rise_further(
    make_learner: Callable[[LearnerConfig], Learner], monkeypatch: pytest.MonkeyPatch, grpo: Seen
) -> None:
    seen, found = second_update(make_learner(configured("tiny_cpu", "dapo").learner), monkeypatch)
    torch.testing.assert_close(seen.ratio, grpo.ratio)
    more = (seen.advantages > 0) & (seen.ratio > 1.2) & (seen.ratio <= 1.28)
    assert more.any() and found["loss/clipped_share"] > 0
    torch.testing.assert_close(seen.gradient[~more], grpo.gradient[~more], **EXACT)
    torch.testing.assert_close(seen.gradient[more], -(seen.weights * seen.advantages * seen.ratio)[more], **EXACT)
    assert not grpo.gradient[more].any()


def test_gspo_keeps_or_drops_whole_strands(
    make_learner: Callable[[LearnerConfig], Learner], monkeypatch: pytest.MonkeyPatch, grpo: Seen
) -> None:
    seen, found = second_update(make_learner(configured("tiny_cpu", "gspo").learner), monkeypatch)
    torch.testing.assert_close(seen.ratio, grpo.ratio)
    kept = dropped = 0
    for strand in seen.strands.unique():
        own = seen.strands == strand
        mean = seen.ratio[own].log().mean().exp()
        cut = clipped(mean, seen.advantages[own], 3e-4, 4e-4)
        assert cut.all() or not cut.any()
        kept, dropped = kept + int(not cut.any()), dropped + int(cut.any())
        expected = -(seen.weights * seen.advantages)[own] * mean * ~cut
        torch.testing.assert_close(seen.gradient[own], expected, **EXACT)
    assert kept and dropped and found["loss/clipped_share"] > 0.1


def test_cispo_drops_no_token(
    make_learner: Callable[[LearnerConfig], Learner], monkeypatch: pytest.MonkeyPatch, grpo: Seen
) -> None:
    seen, found = second_update(make_learner(configured("tiny_cpu", "cispo").learner), monkeypatch)
    torch.testing.assert_close(seen.ratio, grpo.ratio)
    torch.testing.assert_close(
        seen.gradient, -seen.weights * seen.advantages * seen.ratio.clamp(max=1.2), **EXACT
    )  # fmt: skip
    assert found["loss/clipped_share"] > 0 and (seen.gradient[grpo.gradient == 0] != 0).all()


def moved(learner: Learner) -> Tensor:
    """How far one step's updates move the weights, as one vector."""
    before = asyncio.run(learner.weights())
    asyncio.run(learner.update(batch_of(learner), 3e-3, ANY_GAP))
    after = asyncio.run(learner.weights())
    return torch.cat([(after[key] - before[key]).flatten() for key in before])


@pytest.mark.parametrize("name", ["dapo", "gspo", "cispo"])
def test_the_weights_end_elsewhere_than_grpos(make_learner: Callable[[LearnerConfig], Learner], name: str) -> None:
    configs = (LearnerConfig(), LearnerConfig(), configured("tiny_cpu", name).learner)
    grpo, again, other = (moved(make_learner(config)) for config in configs)
    assert torch.equal(grpo, again)
    assert (other - grpo).norm() > 0.01 * grpo.norm()


def test_several_updates_are_those_of_the_minibatches_one_after_the_other(
    make_learner: Callable[[LearnerConfig], Learner],
) -> None:
    """With bounds so wide that nothing is clipped, and each part's ratios to its own start: the first update is the same, the
    second differs by its ratios alone, which importance weights make good."""
    config = LearnerConfig(minibatches=2, clip_low=1.0, clip_high=1e6, importance_cap=1e6)
    together, apart = make_learner(config), make_learner(config)
    batch = batch_of(together)[:2]
    asyncio.run(together.update(batch, 1e-3, ANY_GAP))
    for part in batch:
        asyncio.run(apart.update([part], 1e-3, ANY_GAP))
    ours, theirs = asyncio.run(together.weights()), asyncio.run(apart.weights())
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-4, atol=1e-6)


def test_the_table_of_algorithms_is_that_of_the_presets() -> None:
    lines = [line.strip("| ").split(" | ") for line in (rl.losses.__doc__ or "").splitlines() if line.startswith("| ")]
    header, _, *rows = lines
    assert [row[0] for row in rows] == ["paper", "dr_grpo", "dapo", "gspo", "cispo"]
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        bases = [()] if row[0] == "paper" else [("tiny_cpu",), ("paper",), ("dapo",), ("gspo",), ("dr_grpo",)]
        for base in bases:
            compare(cells, configured(*base, row[0]))


def compare(cells: dict[str, str], own: RlConfig) -> None:
    """Whatever preset is below, the algorithm's own settings are those of the table."""
    learner = own.learner
    assert cells["weighting"] == own.weighting and cells["ratio"] == learner.ratio
    assert cells["divide_by_deviation"] == str(own.divide_by_deviation).lower()
    assert int(cells["redraws"]) == own.redraws and cells["surrogate"] == learner.surrogate
    assert cells["updates"] == f"{learner.inner_steps} x {learner.minibatches}"
    assert cells["clip"] == f"{learner.clip_low:g}, {learner.clip_high:g}"
    assert float(cells["kl_weight"]) == learner.kl_weight
    assert re.fullmatch(r".+, arXiv \d{4}\.\d{5}", cells["source"])


# What a step's groups become.


def group(problem: str, *rewards: float) -> list[Trace]:
    outcome = Outcome(StopReason.ANSWERED, True, "said")
    whole = {"total": 0.0, "success": 0.0, "correct": 0.0, "within": 1.0}
    return [
        Trace({"id": problem}, "serial", 0, sample, (), (), outcome=outcome, reward={**whole, "total": reward})
        for sample, reward in enumerate(rewards)
    ]


class Drawn:
    """In place of a `Roller`: groups of the problems asked for, of which those named have a signal."""

    def __init__(self, with_signal: Sequence[str]) -> None:
        self.with_signal = with_signal
        self.rounds: list[list[str]] = []

    async def run(self, jobs: Sequence[Job], step: int) -> AsyncIterator[Trace]:
        self.rounds.append([job.problem["id"] for job in jobs])
        for job in jobs:
            reward = float(job.problem["id"] in self.with_signal and job.sample % 2)
            (trace,) = group(job.problem["id"], reward)
            yield replace(trace, sample=job.sample)


@pytest.fixture
def as_rolled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rewards as the traces come with them."""
    monkeypatch.setattr("rl.rollouts.rewarded", lambda trace, config: trace)
    yield


def rolled(config: RlConfig, drawn: Drawn, step: int = 0) -> list[list[Trace]]:
    parts = cast(Any, SimpleNamespace(train=TRAIN))
    return asyncio.run(roll_out(config, parts, cast(Any, drawn), step))


TRAIN = [{"id": f"p{number}"} for number in range(40)]
SMALL = RlConfig(problems_per_step=4, group_size=2)


@pytest.mark.usefixtures("as_rolled")
def test_redraws_fill_the_batch_and_are_bounded() -> None:
    config = SMALL.model_copy(update={"redraws": 3})
    order = [problem["id"] for problem in problems_of(config, TRAIN, 0)]
    assert len(order) == len(set(order)) == 16
    drawn = Drawn(with_signal=[order[0], order[5], order[6], order[8]])
    groups = rolled(config, drawn)
    # 4 problems, 1 with a signal; 3 more, 2 of them; 1 more, none; the last round: 1 more.
    assert [names[::2] for names in drawn.rounds] == [order[:4], order[4:7], order[7:8], order[8:9]]
    assert len(groups) == 9
    never = Drawn(with_signal=[])
    assert len(rolled(config, never)) == 16 and len(never.rounds) == 4
    at_once = Drawn(with_signal=order)
    assert len(rolled(config, at_once)) == 4


def test_every_step_has_problems_of_its_own_whatever_was_drawn() -> None:
    config = SMALL.model_copy(update={"redraws": 1})
    steps = [[problem["id"] for problem in problems_of(config, TRAIN, step)] for step in range(5)]
    assert sorted(sum(steps, [])) == sorted(problem["id"] for problem in TRAIN)
    plain = [[problem["id"] for problem in problems_of(SMALL, TRAIN, step)] for step in range(10)]
    assert sum(plain, []) == sum(steps, [])


def test_a_step_without_signal_trains_nothing_even_with_a_kl_term() -> None:
    config = SMALL.model_copy(update={"learner": LearnerConfig(kl_weight=0.1)})
    assert minibatches_of(config, Rollout([group("a", 1, 1), group("b", 0, 0)], 0.0, 0.0), 0) == []


# The learning rate's schedule.


def test_a_linear_schedule_keeps_its_horizon_when_steps_are_raised(tmp_path: Path) -> None:
    task, out = make_task(tmp_path / "task", SPAWNING, steps=110), tmp_path / "run"
    linear = {"lr": 3e-4, "threads": 1, "lr_schedule": "linear"}
    launch(rl_config(task, out, steps=2, validate_problems=0, learner=linear), resume=False)
    kept = load(RlConfig, [out / "config.yaml"])
    assert kept.learner.lr_steps == 2
    with pytest.raises(ConfigError, match=r"steps \(4\) goes beyond learner.lr_steps \(2\)"):
        load(RlConfig, [out / "config.yaml"], ["steps=4"])
    earlier = load(RlConfig, [out / "config.yaml"], ["steps=4", "learner.lr_steps=null"])  # a version that kept none
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace("lr_steps: 2", "lr_steps: null"))
    with pytest.raises(ConfigError, match=r"beyond learner.lr_steps \(2\)"):
        launch(earlier, resume=True)
    longer = load(RlConfig, [out / "config.yaml"], ["steps=4", "learner.lr_steps=8"])
    launch(longer, resume=True)
    assert [line["loss/lr"] for line in metrics(out)] == pytest.approx([3e-4, 1.5e-4, 3e-4 * 6 / 8, 3e-4 * 5 / 8])
    stopped = load(RlConfig, [out / "config.yaml"], ["steps=3"])  # fewer steps end the run, not the schedule
    assert learning_rate(stopped, 2) == pytest.approx(3e-4 * 6 / 8)
