"""Options that a choice makes idle are refused, unless the choice came later than they did."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from apr.cli import main
from apr.config import DataConfig, EvalConfig, QuickstartConfig, RlConfig, SftConfig
from apr.errors import ConfigError
from apr.presets import dump, load, load_recorded, preset
from apr.runs import refuse_other, run_directory

TEACHER = "solvers.a.protocol=serial"
ENDPOINT = ["engine.kind=endpoint", "engine.url=http://x:1"]


@pytest.mark.parametrize(
    ("kind", "overrides", "says"),
    [
        (
            EvalConfig,
            ["engine.url=http://x:1"],
            "with engine.kind=vllm: engine.url=http://x:1; set engine.kind=endpoint",
        ),
        (RlConfig, ["engine.timeout=9"], "with engine.kind=vllm: engine.timeout=9"),
        (EvalConfig, ["engine.kind=tiny", "engine.block_size=16"], "with engine.kind=tiny: engine.block_size=16"),
        (EvalConfig, ["engine.kind=tiny", "engine.model=a"], "with engine.kind=tiny: engine.model=a"),
        (RlConfig, ["engine.kind=tiny", "engine.dtype=bfloat16"], "engine.dtype=bfloat16; set engine.kind=vllm"),
        (EvalConfig, [*ENDPOINT, "engine.kv_cache_mib=9"], "with engine.kind=endpoint: engine.kv_cache_mib=9"),
        (
            EvalConfig,
            [*ENDPOINT, "engine.threads=1", "engine.tensor_parallel=2"],
            "engine.tensor_parallel=2, engine.threads=1",
        ),
        (SftConfig, ["base=a", "lr=1e-4", "model.layers=2"], "with base=a: model.layers=2; set base=null"),
        (SftConfig, ["base=a", "lr=1e-4", "model={hidden: 64, window: 64}"], "with base=a: model.hidden=64;"),
        (SftConfig, ["base=a", "lr=1e-4", "muon_lr=1e-3"], "with base=a: muon_lr=0.001"),
        (SftConfig, ["lora.rank=8"], "with base=null: lora={...}; set `base`"),
        (RlConfig, ["constant=9"], "with weighting=token: constant=9; set weighting=constant"),
        (RlConfig, ["learner.lr_steps=9"], "with learner.lr_schedule=constant: learner.lr_steps=9"),
        (RlConfig, ["cluster.engine_gpus=1"], "with cluster.address=none: cluster.engine_gpus=1"),
        (EvalConfig, ["cluster.routing=spread"], "with cluster.address=none: cluster.routing=spread"),
        (RlConfig, ["cluster={learner_cpus: 2, reply_timeout: 9}"], "cluster.learner_cpus=2, cluster.reply_timeout=9"),
        (EvalConfig, ["cluster.address=local", "cluster.ranks=2"], "in this command: cluster.ranks=2"),
        (
            DataConfig,
            ["env=countdown", TEACHER, "solvers.a.context_bin=9"],
            "solvers.a.condition=none: solvers.a.context_bin=9",
        ),
        (DataConfig, ["env=countdown", TEACHER, "solvers.a.child_promising_share=0"], "with solvers.a.spawn_depth=0"),
        (QuickstartConfig, ["start=sft", "stages.sft=[lr=1]"], "leave stages.sft out"),
    ],
)
def test_an_idle_option_is_refused_with_what_makes_it_so(
    kind: type[BaseModel], overrides: list[str], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(kind, [], overrides)
    assert says in str(caught.value)


def test_an_idle_option_in_a_file_is_refused_too(tmp_path: Path) -> None:
    for name, text in (
        ("kind", "engine: {kind: tiny, block_size: 16}\n"), ("default", "constant: 9\n"),
        ("address", "cluster: {engine_gpus: 1}\n"),
    ):  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="do nothing"):
            load(RlConfig, [tmp_path / f"{name}.yaml"])


def test_all_that_does_nothing_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(RlConfig, [], ["constant=9", "engine.kind=tiny", "engine.block_size=1", "cluster.restarts=1"])
    assert len(str(caught.value).splitlines()) == 4


def test_another_choice_replaces_what_earlier_files_set_for_the_old_one() -> None:
    smollm2 = preset("eval", "smollm2")
    assert load(EvalConfig, [smollm2]).engine.kv_cache_mib == 256
    config = load(EvalConfig, [smollm2], ["engine.kind=tiny"])
    assert config.engine.kv_cache_mib == EvalConfig().engine.kv_cache_mib
    with pytest.raises(ConfigError, match="engine.kv_cache_mib=99"):
        load(EvalConfig, [smollm2], ["engine.kind=tiny", "engine.kv_cache_mib=99"])
    assert load(SftConfig, [preset("sft", "one_gpu")], ["base=null"]).lora is None
    assert load(RlConfig, [preset("rl", "tiny_cpu"), preset("rl", "dr_grpo")], ["constant=9"]).constant == 9


def test_defaults_may_be_named() -> None:
    config = load(
        EvalConfig, [], ["engine.kind=tiny", "engine.block_size=32", "cluster.engine_gpus=0", "engine.url=null"]
    )
    assert config == load(EvalConfig, [], ["engine.kind=tiny"])


def test_what_an_earlier_version_recorded_stays_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RlConfig(constant=9, out=tmp_path)
    with run_directory(tmp_path, config):
        pass
    with pytest.raises(ConfigError, match="constant=9"):
        load(RlConfig, [tmp_path / "config.yaml"])
    assert load_recorded(RlConfig, tmp_path / "config.yaml") == RlConfig(out=tmp_path)
    refuse_other(tmp_path, RlConfig(out=tmp_path), ())
    assert main(["rl", "--resume", str(tmp_path), "--print-config"]) == 0
    assert main(["rl", "--resume", str(tmp_path), "constant=8", "--print-config"]) == 2
    assert "constant=8" in capsys.readouterr().err


def test_a_recorded_configuration_without_idle_options_can_be_given_again(tmp_path: Path) -> None:
    for given in (["engine.kind=tiny"], ENDPOINT, []):
        config = load(EvalConfig, [preset("eval", "one_gpu")] if not given else [], given)
        (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
        assert load(EvalConfig, [tmp_path / "config.yaml"]) == config
