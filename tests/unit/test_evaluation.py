"""Evaluations on a scripted engine: whole, or gone on with, or refused with a way out."""

import pytest
from places import PROBLEMS, Place

from apr.cli import main
from apr.config import EvalConfig, RlConfig
from apr.errors import ConfigError, EngineLostError, RunDirectoryError, UserError
from apr.evaluation.run import evaluate
from apr.presets import check, dump
from apr.threads.codec import read_traces


def test_a_lost_engine_fails_and_the_next_call_goes_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.dies_at = 3
    config = place.config()
    (place.folder / "eval.yaml").write_text(dump(config))
    assert main(["eval", "--config", str(place.folder / "eval.yaml")]) == 1
    said = capsys.readouterr().err
    assert "apr: failed: the engine died at problem" in said and "call the same command again" in said
    kept = list(read_traces(config.out / "traces.jsonl.gz"))
    assert len(kept) == 2 and not (config.out / "summary.json").exists()

    place.dies_at = 1  # all are lost: no more than before is on disk
    with pytest.raises(EngineLostError):
        evaluate(config)
    assert list(read_traces(config.out / "traces.jsonl.gz")) == kept

    place.dies_at = 1_000
    summary = evaluate(config)
    done = list(read_traces(config.out / "traces.jsonl.gz"))
    assert len(done) == summary.n == PROBLEMS and done[:2] == kept and (config.out / "summary.json").exists()
    assert evaluate(config) == summary and place.started == 3  # whole: no engine is started again


def test_another_protocol_than_the_checkpoints_is_refused(place: Place) -> None:
    place.checkpoint(protocol="spawn_join")
    with pytest.raises(ConfigError, match="trained in protocol spawn_join, not in serial: set protocol=spawn_join"):
        evaluate(place.config())
    assert not (place.folder / "eval").exists()
    assert evaluate(place.config(protocol="spawn_join")).n == PROBLEMS


def test_a_finished_evaluation_keeps_its_pace_and_engine(place: Place) -> None:
    place.evaluation()
    for changes in ({"in_flight": 3}, {"engine": {"dtype": "bfloat16"}}):
        with pytest.raises(RunDirectoryError, match=f"what differs: {next(iter(changes))}"):
            evaluate(place.config(**changes))


@pytest.mark.parametrize("moved", ["data", "model", "both"])
def test_an_evaluation_goes_on_where_data_or_checkpoint_have_moved(place: Place, moved: str) -> None:
    place.evaluation(problems=2)
    places = {
        key: (place.folder / name).rename(place.folder / f"{name}_elsewhere")
        for key, name in (("data", "data"), ("checkpoint", "model"))
        if moved in (name, "both")
    }
    assert evaluate(place.config(**places)).n == PROBLEMS
    other = place.checkpoint("other")
    with pytest.raises(
        RunDirectoryError, match=r"differs: checkpoint_hash \(was .*`checkpoint` set to where its own is"
    ):
        evaluate(place.config(**{**places, "checkpoint": other}))


def test_more_problems_are_added_and_an_old_summary_goes_first(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place.evaluation(problems=2)
    place.dies_at = 1
    with pytest.raises(EngineLostError):
        evaluate(place.config(problems=4))
    assert not (folder / "summary.json").exists()
    place.dies_at = 1_000
    assert evaluate(place.config(problems=4)).n == 4
    assert "fewer than" not in capsys.readouterr().err
    assert evaluate(place.config(problems=9)).n == 4
    assert "has 4 test problems, fewer than the 9 asked for" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{}", "[]", "{", '{"checkpoint_hash": 3, "data_hash": "a"}'])
def test_another_call_needs_the_manifest(place: Place, content: str | None) -> None:
    manifest = place.evaluation() / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(UserError) as caught:
        evaluate(place.config())
    assert str(manifest) in str(caught.value) and "delete" in str(caught.value)


def test_another_call_on_a_partial_or_missing_configuration(place: Place) -> None:
    path = place.evaluation() / "config.yaml"
    path.write_text("samples: 1\n")
    with pytest.raises(RunDirectoryError, match="protocol"):
        evaluate(place.config())
    path.unlink()
    with pytest.raises(RunDirectoryError, match="config.yaml"):
        evaluate(place.config())


def test_an_evaluation_of_an_earlier_version_goes_on(place: Place) -> None:
    """It named two threads where the configuration named none."""
    path = place.evaluation() / "config.yaml"
    assert "threads: null" in (text := path.read_text())
    path.write_text(text.replace("threads: null", "threads: 2"))
    evaluate(place.config())
    with pytest.raises(RunDirectoryError, match=r"engine\.threads"):
        path.write_text(text.replace("threads: null", "threads: 2"))
        evaluate(place.config(engine={"threads": 1}))


@pytest.mark.parametrize("change", ["seed", "limits", "checkpoint", "problems"])
def test_traces_of_another_evaluation_are_not_added_to(place: Place, change: str) -> None:
    folder = place.evaluation()
    before = (folder / "config.yaml").read_bytes()
    changes = {
        "seed": 1, "limits": {"context": 99}, "checkpoint": place.checkpoint("other"), "problems": PROBLEMS - 1,
    }  # fmt: skip
    with pytest.raises(RunDirectoryError, match="traces asked|more than the 3" if change == "problems" else change):
        evaluate(place.config(**{change: changes[change]}))
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("kind", [EvalConfig, RlConfig])
def test_a_temperature_too_low_to_sample_at_is_refused_at_once(kind: type[EvalConfig | RlConfig]) -> None:
    for temperature in (0.005, 0.0099):
        with pytest.raises(ConfigError, match="temperature: .*0.01 or more"):
            check(kind, {"temperature": temperature}, "test")
    assert check(kind, {"temperature": 0.01}, "test").temperature == 0.01
