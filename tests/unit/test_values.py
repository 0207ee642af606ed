"""A value means what was typed: it reaches its field unchanged, or is refused; in files and on the command line alike."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from apr.cli import main
from apr.config import DataConfig, EvalConfig, QuickstartConfig, RlConfig, SftConfig
from apr.errors import ConfigError
from apr.presets import dump, load

TEXTS = [
    "runs/a#b", "runs/my #2", "123", "1_000", "0x10", "010", "1e3", "1:30", "on", "no", "True", "2024-01-01", "'a'", '"b"',
    " runs/a", "runs/a ", "a: b", "a, b", "{a", "[1]", "*x", "&y", "!z", "%", "@", "`", "- a", "? a", "| a", "a=b", "é/ü",
    "a\tb", "=", "<<",
]  # fmt: skip


def refusal(kind: type[BaseModel], *overrides: str, paths: tuple[Path, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, paths, overrides)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "given.yaml"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_a_path_and_a_text_survive_an_override_and_the_recorded_configuration(text: str, tmp_path: Path) -> None:
    config = load(RlConfig, [], [f"out={text}", f"wandb={text}", f"cluster.address={text}", f"checkpoint={text}"])
    assert (config.out, config.wandb, config.cluster.address, config.checkpoint) == (Path(text), text, text, Path(text))
    assert load(RlConfig, [written(tmp_path, dump(config))]) == config


@pytest.mark.parametrize(
    "text", ["123", "1_000", "0x10", "010", "1e3", "1:30", "on", "True", "2024-01-01", ".5", "1.0"]
)
def test_a_text_in_a_file_is_not_guessed_at(text: str, tmp_path: Path) -> None:
    config = load(RlConfig, [written(tmp_path, f"out: {text}\nwandb: {text}\ncluster: {{address: {text}}}\n")])
    assert (config.out, config.wandb, config.cluster.address) == (Path(text), text, text)
    data = load(SftConfig, [written(tmp_path, f"solver: {text}\n")])
    assert data.solver == text


def test_texts_in_lists_and_mappings_are_kept() -> None:
    config = load(QuickstartConfig, [], ["stages.rl=[steps=1_0, out=runs/a#b, 012, on]", "preset=007"])
    assert (config.stages["rl"], config.preset) == (["steps=1_0", "out=runs/a#b", "012", "on"], "007")
    data = load(
        DataConfig, [], ["env=countdown", "solvers={on: {protocol: serial}, yes: {protocol: serial, beams: [1e1, 2]}}"]
    )
    assert list(data.solvers) == ["on", "yes"] and data.solvers["yes"].model_dump()["beams"] == [10, 2]


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("-3", -3), ("+4", 4), ("1e6", 10**6), ("1E3", 1000), ("1.5e3", 1500), ("2.0", 2), ("6_000", 6000), ("0", 0)],
)  # fmt: skip
def test_integers(text: str, number: int, tmp_path: Path) -> None:
    seed = load(RlConfig, [], [f"seed={text}"]).seed
    assert (seed, type(seed)) == (number, int)
    assert load(RlConfig, [written(tmp_path, f"seed: {text}\n")]).seed == number


@pytest.mark.parametrize(
    "text", ["0x10", "010", "0o7", "0b1", "1:30", "1e-3", "1.5", "1e999999", "1e31", "on", "true", "2024-01-01", "--1", "", "٣"]
)  # fmt: skip
def test_what_is_no_integer_is_refused(text: str, tmp_path: Path) -> None:
    assert f"seed: {text!r} is not a valid integer" in refusal(RlConfig, f"seed={text}")
    if text:
        assert "is not a valid integer" in refusal(RlConfig, paths=(written(tmp_path, f"seed: {text}\n"),))


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("1.", 1.0), ("2", 2.0), ("1_0.5", 10.5)]
)
def test_numbers(text: str, number: float, tmp_path: Path) -> None:
    assert load(SftConfig, [], [f"lr={text}"]).lr == number
    assert load(SftConfig, [written(tmp_path, f"lr: {text}\nsnapshots: [1e-1]\n")]).lr == number


@pytest.mark.parametrize(
    "text", ["fast", "0x1p3", "1:30", "yes", "1e", "1,5", "2024-01-01", "", "inf", ".nan", "1e999"]
)
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    assert "lr: " in refusal(SftConfig, f"lr={text}")


@pytest.mark.parametrize(("text", "truth"), [("true", True), ("no", False), ("ON", True), ("False", False)])
def test_truths(text: str, truth: bool) -> None:
    assert load(RlConfig, [], [f"tensorboard={text}"]).tensorboard is truth
    for other in ("1", "y", "null", ""):
        assert "tensorboard: " in refusal(RlConfig, f"tensorboard={other}")


def test_null_is_no_value_where_there_may_be_none_and_refused_elsewhere(tmp_path: Path) -> None:
    assert load(RlConfig, [], ["wandb=null", "limits.work=null"]).wandb is None
    assert load(RlConfig, [written(tmp_path, "wandb: ~\nlimits: {work: }\n")]).wandb is None
    assert load(RlConfig, [written(tmp_path, "wandb: 'null'\nout: '~x'\n")]).wandb == "null"
    for override in ("out=null", "seed=null", "out=", "cluster.address=", "wandb=", "limits=null"):
        assert f"{override.partition('=')[0]}: " in refusal(RlConfig, override)
    for text in ("out: null", "out:", "out: ~", "seed: null"):
        assert f"{text.partition(':')[0]}: " in refusal(RlConfig, paths=(written(tmp_path, text),))


@pytest.mark.parametrize("text", ["a\0b", "a\udcffb"])
def test_a_name_that_no_file_can_have_is_refused(text: str) -> None:
    assert "out: " in refusal(RlConfig, f"out={text}")


def test_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text, path in (
        ("~", ""),
        ("~/a b", "a b"),
        ("./~", "~"),
        ("./~/a", "~/a"),
        ("~/", ""),
        ("~nobody_such/a", "~nobody_such/a"),
    ):
        config = load(EvalConfig, [], [f"out={text}", f"base={text}"])
        assert config.out == config.base == tmp_path / path
        assert load(EvalConfig, [written(tmp_path, dump(config))]) == config
    assert load(EvalConfig, [], ["out=a~/~"]).out == Path("a~/~")
    assert load(RlConfig, [], ["wandb=~me"]).wandb == "~me"
    written(tmp_path, "steps: 7\n")
    assert main(["rl", "--config", "~/given.yaml", "--print-config"]) == 0
    assert "steps: 7" in capsys.readouterr().out
    assert main(["data", "verify", "~/none"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["seed=1", "seed=1"], "seed"),
        (["seed=1", " seed =2"], "seed"),
        (["limits={context: 90}", "limits.context=80"], "limits.context"),
        (["limits.context=80", "limits={context: 90}"], "limits.context"),
        (["limits={context: 80}", "limits={threads: 9}"], "limits"),
        (["learner.lora=null", "learner.lora.rank=4"], "learner.lora"),
    ],
)
def test_a_key_given_twice_on_the_command_line_is_refused(overrides: list[str], key: str) -> None:
    assert f"the key {key} is given twice" in refusal(RlConfig, *overrides)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: 1\nsteps: 3\nseed: 1\n", "seed"),
        ("limits: {context: 80, context: 90}\n", "context"),
        ("limits:\n  context: 80\n\nlimits:\n  threads: 9\n", "limits"),
        ("seed: 1\n'seed': 2\n", "seed"),
    ],
)
def test_a_key_given_twice_in_a_file_is_refused_with_its_line(text: str, key: str, tmp_path: Path) -> None:
    said = refusal(RlConfig, paths=(written(tmp_path, text),))
    assert (
        f"the key {key} is given twice" in said
        and f"given.yaml, line {text[: text.rindex(key)].count(chr(10)) + 1}" in said
    )
    with pytest.raises(ConfigError, match="given twice"):
        load(RlConfig, [], ["limits={context: 80, context: 90}"])


def test_parts_of_one_mapping_may_be_given_one_by_one_and_later_files_win(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 1\nlimits: {context: 80}\n")
    second.write_text("seed: 2\n")
    config = load(RlConfig, [first, second], ["limits={threads: 9}", "limits.depth=2"])
    assert (config.seed, config.limits.context, config.limits.threads, config.limits.depth) == (2, 80, 9, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: !!int 3", "tags"),
        ("out: !env HOME", "tags"),
        ("limits: &a {context: *a}", "alias"),
        ("? [a]\n: 1", "a key is a word"),
        ("<<: {seed: 1}", "unknown key <<"),
        ("1: 2", "unknown key 1"),
        ("seed: 1\n---\nseed: 2", "not valid YAML"),
        ("out: *b", "not valid YAML"),
        ("just text", "mapping"),
    ],
)
def test_yaml_that_means_more_than_values_is_refused(text: str, says: str, tmp_path: Path) -> None:
    assert says in refusal(RlConfig, paths=(written(tmp_path, text),))


def test_an_anchor_is_a_value_written_once(tmp_path: Path) -> None:
    config = load(RlConfig, [written(tmp_path, "data: &a 010\nout: *a\nlimits: {context: 99}\n")], ["limits.depth=2"])
    assert (config.data, config.out) == (Path("010"), Path("010"))


def test_what_would_be_lost_behind_a_list_is_refused() -> None:
    for override in ("stages.rl=[a=1] # b", "stages.rl=[a=1]]", "stages.rl=[a=1] b", "stages={rl: [a=1]} #"):
        assert "stands after the value" in (said := refusal(QuickstartConfig, override)) or "not valid YAML" in said
    assert "stages.rl: " in refusal(QuickstartConfig, "stages.rl=steps=3")
    assert "limits: " in refusal(RlConfig, "limits=3")


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\r\nout: a\r\n")
    config = load(RlConfig, [path])
    assert (config.seed, config.out) == (3, Path("a"))


def test_options_of_environments_and_teachers_are_read_by_their_types(tmp_path: Path) -> None:
    config = load(
        DataConfig,
        [],
        ["env=countdown", "env.high=1e1", "env.test_share=2e-1", "solvers.a={protocol: serial, beams: [1e1]}"],
    )
    assert (config.env.given["high"], config.env.given["test_share"]) == (10, 0.2)
    assert config.solvers["a"].model_dump()["beams"] == [10]
    assert load(DataConfig, [written(tmp_path, dump(config))]) == config
    for override, says in (
        ("env.high=010", "'010' is not a valid integer"),
        ("env.low=on", "'on' is not a valid integer"),
        ("solvers.a.beams=[01]", "solvers.a.beams.0: '01' is not a valid integer"),
        ("solvers.a.duplicates=1", "'1' is neither true nor false"),
        ("env.high=null", "high: 'null' is no value"),
    ):
        given = ["env=countdown", "solvers.a.protocol=serial", override]
        assert says in refusal(DataConfig, *given)


def test_what_nobody_knows_the_type_of_keeps_its_look(tmp_path: Path) -> None:
    path = written(
        tmp_path, "env: {name: 'gone.py:Task', length: 6, share: 0.5, deep: true, name2: '6', none: null, id: 007}\n"
    )
    given = load(DataConfig, [path]).env.given
    assert given == {"length": 6, "share": 0.5, "deep": True, "name2": "6", "none": None, "id": "007"}
