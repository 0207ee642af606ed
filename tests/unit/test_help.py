"""Help lists every key with its description, default and presets, and names what was probably meant."""

import re
from pathlib import Path

import pytest

import apr
from apr.cli import main
from apr.config import KINDS
from apr.keys import keys_of
from apr.presets import available, load, preset

COMMANDS = {"data": ["data", "generate"], "sft": ["sft"], "rl": ["rl"], "eval": ["eval"], "quickstart": ["quickstart"]}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("stage", KINDS)
def test_every_key_has_a_description_and_stands_in_the_help(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, *COMMANDS[stage], "--help")
    keys = list(keys_of(KINDS[stage]))
    assert status == 0 and len({key.name for key in keys}) == len(keys) >= 7
    assert not [key.name for key in keys if not key.description]
    text = " ".join(out.split())
    for key in keys:
        assert f"{key.name}=" in text and " ".join(key.description.split()) in text
    for name in available(stage):
        assert re.search(rf"^  {name}$", out, re.MULTILINE)
    assert out.endswith("\n")


def test_types_and_defaults_are_told() -> None:
    heads = {key.name: key.head for key in keys_of(KINDS["rl"])}
    assert heads["learner.lr"] == "learner.lr=0.0002 (number)"
    assert heads["limits.work"] == "limits.work=null (integer or null)"
    assert heads["weighting"] == "weighting=token (token or strand or trace or constant)"
    assert heads["tensorboard"] == "tensorboard=true (true or false)"
    assert heads["reward.soft_span.budget"] == "reward.soft_span.budget=... (integer)"
    assert heads["learner.lora.rank"] == "learner.lora.rank=16 (integer)"
    data = {key.name: key.head for key in keys_of(KINDS["data"])}
    assert data["solvers.NAME.beams"] == "solvers.NAME.beams=[5] (list of integers)"


def test_presets_are_those_of_the_command_and_say_what_they_are() -> None:
    assert "dapo" in available("rl") and "dapo" not in available("sft")
    assert list(available("quickstart")) == ["tiny_cpu"]
    for stage in ("data", "sft", "rl", "eval"):
        for name, about in available(stage).items():
            assert about and load(KINDS[stage], [preset(stage, name)])


@pytest.mark.parametrize(("stage", "word", "key", "other"), [
    ("rl", "kl", "learner.kl_weight", "steps="), ("sft", "LORA", "lora.rank", "seed="),
    ("data", "beam", "solvers.NAME.beams", "seed="), ("eval", "HOST:PORT", "engine.url", "seed="),
    ("quickstart", "overrides", "stages", "seed="),
])  # fmt: skip
def test_keys_are_searched_by_name_and_description(
    stage: str, word: str, key: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(capsys, *COMMANDS[stage], "--keys", word)
    assert status == 0 and f"  {key}=" in out and f"  {other}" not in out
    status, out, err = said(capsys, *COMMANDS[stage], "--keys", "zzz")
    assert (status, out) == (2, "") and "no key of this command mentions 'zzz'" in err


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("stage", KINDS)
def test_help_fits_the_terminal(
    stage: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = said(capsys, *COMMANDS[stage], "--help")
    assert max(map(len, out[out.index("\nkeys, ") :].splitlines())) <= columns


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["evl"], "did you mean eval?"),
        (["quikstart"], "did you mean quickstart?"),
        (["data", "genrate"], "did you mean generate?"),
        (["sft", "--confg", "x"], "did you mean --config?"),
        (["rl", "--resum=x"], ""),
        (["rl", "--rezume=x"], "did you mean --resume?"),
        (["view", "x", "--outcome", "corect"], "did you mean correct?"),
        (["sft", "--config", "tiny_cp"], "did you mean tiny_cpu?"),
        (["rl", "--config", "dapoo"], "did you mean dapo?"),
        (["eval", "--config", "study.yml"], "no configuration file"),
        (["rl", "stepz=3"], "did you mean steps?"),
        (["rl", "limits.contxt=3"], "did you mean limits.context?"),
        (["sft", "window=3"], "did you mean model.window?"),
        (["eval", "context=3"], "did you mean limits.context or budgets.context?"),
        (["quickstart", "presett=a"], "did you mean preset?"),
        (["sft", "--keys", "windw"], "did you mean window?"),
    ],
)
def test_what_was_meant_is_named(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, *arguments)
    assert (status, out) == (2, "") and hint in err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "--version")
    assert (status, out) == (0, f"apr {apr.__version__}\n")
    assert 'attr = "apr.__version__"' in (Path(apr.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
