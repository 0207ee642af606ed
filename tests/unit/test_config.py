"""Configurations: checked as a whole, with errors that name the key and what is known there."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from apr.config import DataConfig, EvalConfig, QuickstartConfig, RlConfig, SftConfig, refuse_idle
from apr.errors import ConfigError
from apr.presets import dump, load, preset

KINDS: dict[str, type[BaseModel]] = {"data": DataConfig, "sft": SftConfig, "rl": RlConfig, "eval": EvalConfig}
PRESETS = sorted(Path(str(files("configs"))).rglob("*.yaml"))
TEACHER = "solvers.sos.protocol=serial"
TRANSFER = ["cluster.address=auto", "cluster.engine_gpus=1", "cluster.learner_gpus=1"]
SHARED = ["cluster.address=auto", "cluster.engine_gpus=0.5", "cluster.learner_gpus=0.5"]


def refusal(kind: type[BaseModel], *overrides: str, paths: Sequence[Path] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, paths, overrides)
    return str(caught.value)


def test_defaults_are_sound() -> None:
    for kind in (SftConfig, EvalConfig, RlConfig, QuickstartConfig):
        assert load(kind, []) == kind()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_preset_is_sound_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    kind = KINDS[path.parent.name]
    assert preset(path.parent.name, path.stem) == path
    config = load(kind, [path])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(kind, [tmp_path / "config.yaml"]) == config


def test_presets_of_the_quickstart_are_there() -> None:
    assert {"tiny_cpu"} <= set.intersection(*({p.stem for p in PRESETS if p.parent.name == kind} for kind in KINDS))


def test_later_files_and_overrides_win_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 7\nlimits: {context: 100, threads: 5}\nlearner: {lr: 1.0e-3}\n")
    (tmp_path / "b.yaml").write_text("limits: {context: 90}\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    paths = [tmp_path / name for name in ("a.yaml", "b.yaml", "empty.yaml")]
    config = load(RlConfig, paths, ["limits.threads=6", "learner.lr=2e-4", "limits.work=null", "out=runs/x y"])
    assert (config.steps, config.limits.context, config.limits.threads, config.limits.work) == (7, 90, 6, None)
    assert (config.learner.lr, config.out) == (2e-4, Path("runs/x y"))


def test_an_unknown_key_is_named_with_its_siblings() -> None:
    said = refusal(RlConfig, "limits.contxt=3")
    assert "unknown key limits.contxt" in said
    assert "known here: context, reach, work, span, depth, threads, width, seconds" in said
    assert "steps" in refusal(RlConfig, "stepz=3").partition("known here")[2]


def test_siblings_are_known_inside_optional_parts_and_mappings() -> None:
    assert "known here: budget, weight" in refusal(RlConfig, "reward.soft_span.budgt=3")
    assert "known here: protocol, condition, scripts, beams" in refusal(
        DataConfig, "env=countdown", TEACHER, "solvers.sos.beamz=1"
    )
    assert "unknown key solvers.sos.a.b" not in refusal(DataConfig, "env=countdown", TEACHER, "solvers.sos.a.b=1")


@pytest.mark.parametrize(
    ("kind", "overrides", "says"),
    [
        (RlConfig, ["steps=many"], ["steps: ", "valid integer"]),
        (RlConfig, ["steps=yes"], ["steps: 'yes' is not a valid integer"]),
        (RlConfig, ["learner.lr=on"], ["learner.lr: 'on' is not a valid number"]),
        (RlConfig, ["learner.lr=fast"], ["learner.lr: ", "valid number"]),
        (RlConfig, ["learner.lr=.inf"], ["learner.lr: ", "finite"]),
        (RlConfig, ["limits=3"], ["limits: "]),
        (RlConfig, ["limits.context.more=3"], ["limits.context: ", "integer"]),
        (RlConfig, ["weighting=tokens"], ["weighting: ", "'constant'"]),
        (RlConfig, ["group_size=1"], ["group_size: ", "1 gives no advantage"]),
        (RlConfig, ["top_p=0.9"], ["top_p: ", "not its own"]),
        (RlConfig, ["learner.minibatches=257"], ["learner.minibatches (257)", "256 traces"]),
        (RlConfig, ["constant=99"], ["constant=99", "weighting=constant"]),
        (RlConfig, ["learner.lr_steps=9"], ["lr_steps", "lr_schedule=linear"]),
        (
            RlConfig, ["learner.lr_schedule=linear", "learner.lr_steps=9", "steps=10"],
            ["steps (10)", "learner.lr_steps (9)", "learner.lr_steps=10"],
        ),
        (RlConfig, ["cluster.engines=2"], ["cluster: ", "on Ray only"]),
        (RlConfig, ["cluster.ranks=2"], ["cluster.ranks above 1", "cluster.address=local"]),
        (RlConfig, ["learner.parallel=zero2"], ["learner.parallel need Ray"]),
        (RlConfig, ["cluster.address=local", "learner.parallel=zero3", "learner.lora.rank=4"], ["zero2 or less"]),
        (RlConfig, ["reward.concurrency={cap: 0, weight: 1}"], ["reward.concurrency.cap: "]),
        (RlConfig, ["temperature=0"], ["temperature: ", "greater than 0"]),
        (RlConfig, ["limits.seconds=3"], ["limits.seconds", "leave it out"]),
        (RlConfig, ["limits.context=64", "reward.budgets.context=65"], ["reward.budgets.context (65)", "(64)"]),
        (RlConfig, ["limits.depth=0"], ["limits.depth"]),
        (RlConfig, ["reward.soft_span={budget: 10, weight: 1.5}"], ["reward.soft_span.weight: ", "less than"]),
        (RlConfig, ["reward.soft_span={budget: 9, weight: 1}"], ["reward: ", "soft_span.weight is 1", "less than 1"]),
        (
            RlConfig, ["reward.soft_span={budget: 9, weight: 0.5}", "reward.soft_work={budget: 9, weight: 0.5}"],
            ["soft_span.weight, soft_work.weight is 1", "no more than a failure"],
        ),
        (EvalConfig, ["samples=4"], ["temperature"]),
        (SftConfig, ["model.heads=3"], ["hidden (128)", "heads (3)"]),
        (DataConfig, [], ["env: "]),
        (DataConfig, ["env=countdown", TEACHER, "solvers.sos.spawn_depth=1"], ["solvers.sos: ", "spawn_depth"]),
        (DataConfig, ["env=countdown", TEACHER, "env.low=9", "env.high=3"], ["env: ", "low must not exceed high"]),
        (DataConfig, ["env=countdown", TEACHER, "speller=chat"], ["speller chat needs `tokenizer`"]),
        (DataConfig, ["env=countdown", TEACHER, "tokenizer=a", "speller=compact"], ["others have their own"]),
        (DataConfig, ["env=countdown", TEACHER, "control_tokens=[a, b, c, d, e]"], ["control_tokens", "`tokenizer`"]),
        (DataConfig, ["env=countdown", "speller=chat", "tokenizer=a", "control_tokens=[a, b]"], ["control_tokens: ", "5"]),
        (RlConfig, ["weight_sync=nccl"], ["between processes", "cluster.address", "weight_sync=tensors or file"]),
        (RlConfig, [*TRANSFER, "weight_sync=nccl", "engine.kind=tiny"], ["engine.kind=vllm"]),
        (RlConfig, [*TRANSFER[:2], "weight_sync=nccl"], ["nccl: 1 or more each"]),
        (RlConfig, [TRANSFER[0], TRANSFER[2], "cluster.engine_gpus=0.5", "weight_sync=nccl"], ["nccl: 1 or more each"]),
        (RlConfig, [*TRANSFER, "weight_sync=ipc"], ["ipc: 0.5 each"]),
        (RlConfig, [*SHARED, "weight_sync=ipc", "cluster.ranks=2"], ["one engine and one rank"]),
        (RlConfig, [*SHARED, "weight_sync=ipc", "engine.tensor_parallel=2"], ["engine.tensor_parallel=1"]),
        (SftConfig, ["lora.rank=8"], ["lora", "set `base`"]),
        (SftConfig, ["base=a"], ["lr (0.002)", "1e-5 to 1e-3"]),
        (QuickstartConfig, ["stages.sftt=[a]"], ["stages.sftt"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(kind: type[BaseModel], overrides: list[str], says: list[str]) -> None:
    said = refusal(kind, *overrides)
    assert all(words in said for words in says), said


@pytest.mark.parametrize(
    "overrides", [[*TRANSFER, "weight_sync=nccl", "cluster.engines=4", "cluster.ranks=2"], [*SHARED, "weight_sync=ipc"]]
)
def test_weights_may_go_from_gpu_to_gpu(overrides: list[str]) -> None:
    assert load(RlConfig, [], overrides).weight_sync in ("nccl", "ipc")


def test_all_faults_are_told_at_once() -> None:
    said = refusal(RlConfig, "group_size=1", "limits.contxt=3", "learner.lr=fast")
    assert len(said.splitlines()) == 4


def test_soft_budgets_are_optional_and_bounded() -> None:
    config = load(RlConfig, [], ["reward.soft_span={budget: 10, weight: 0.5}"])
    assert config.reward.soft_span is not None and config.reward.soft_span.budget == 10
    assert config.reward.soft_context is None


@pytest.mark.parametrize("override", ["steps", "=3", "--fast", " =3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    assert "dotted.key=value" in refusal(RlConfig, override)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    for content, said in ((b"a: [1", "not valid YAML"), (b"- 1\n", "mapping"), (b"\xff\xfe\x00", "not a text file")):
        path = tmp_path / "config.yaml"
        path.write_bytes(content)
        message = refusal(RlConfig, paths=[path])
        assert said in message and str(path) in message
    assert "no configuration file" in refusal(RlConfig, paths=[tmp_path / "missing.yaml"])
    assert "not valid YAML" in refusal(RlConfig, "limits={a")


@given(
    st.dictionaries(st.sampled_from(["steps", "limits", "limits.context", "learner.lr", "out"]), st.text(max_size=8))
)
def test_any_override_is_either_taken_or_refused(given_: dict[str, Any]) -> None:
    overrides = [f"{key}={value}" for key, value in given_.items()]
    try:
        config = load(RlConfig, [], overrides)
    except ConfigError:
        return
    assert config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["learner.clip_high=0.28"], r"learner\.clip_high=0\.28 cannot act .* set learner\.minibatches .*inner_steps"),
        (["learner.surrogate=cispo"], r"learner\.surrogate=cispo cannot act"),
        (["learner.ratio=strand", "learner.clip_low=0.1"], r"learner\.ratio=strand, learner\.clip_low=0\.1 cannot act"),
    ],
)
def test_what_cannot_act_is_refused_in_a_new_run_and_read_in_an_old_one(
    overrides: list[str], says: str, tmp_path: Path
) -> None:
    config = load(RlConfig, [], overrides)
    with pytest.raises(ConfigError, match=says):
        refuse_idle(config)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(RlConfig, [tmp_path / "config.yaml"]) == config
    refuse_idle(load(RlConfig, [], [*overrides, "learner.minibatches=2"]))
    refuse_idle(load(RlConfig, [], [*overrides, "learner.inner_steps=2"]))
