"""What is said of contact between training and test: counted where the card says how problems were split, else unknown."""

import json
from pathlib import Path
from typing import Any

import pytest
from places import Place
from solver_evaluations import make_data

from apr.checkpoints.card import Card
from apr.config import DataConfig
from apr.contact import contact, trained_on
from apr.data.store import data_env, read_problems
from apr.errors import CheckpointError, DataError
from apr.presets import load, preset

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints" / "tiny_cpu"


def card(data: Path, *trained: str) -> Card:
    return Card(trained=trained or ("sft",), trained_on=trained_on(data, "sft", data_env(data)))


def test_splits_of_one_data_set_have_no_contact_and_training_problems_have_all(place: Place) -> None:
    said = card(place.data)
    for split in ("validation", "test"):
        assert str(contact(said, place.data, read_problems(place.data, split), data_env(place.data))) == "none"
    found = contact(said, place.data, read_problems(place.data, "train"), data_env(place.data))
    assert (found.problems, found.shared, found.seen) == (4, 4, 4)
    assert str(found) == "4 of 4 problems have a number multiset of the training split, 4 are training problems"


def test_problems_of_another_data_set_are_told_by_the_split_rule(tmp_path: Path, place: Place) -> None:
    """Of other numbers than training had, of other sizes, and of another split seed: counted by hand."""
    said = card(place.data)
    spec = data_env(place.data)
    problems = [
        {"id": f"{target}:{a}-{b}", "numbers": [a, b], "target": target}
        for a in range(1, 14) for b in range(a, 14) for target in (a + b, a * b)
    ]  # fmt: skip
    ours = [one for one in problems if one["numbers"][1] <= 9 and spec.split_of(tuple(one["numbers"])) == "train"]
    found = contact(said, tmp_path, problems, data_env(place.data))
    assert 0 < len(ours) < len(problems)
    assert (found.problems, found.shared, found.seen) == (len(problems), len(ours), None)
    assert "it is unknown how many are training problems" in str(found)
    # Three numbers: no multiset of two.
    larger = make_data(tmp_path / "larger")
    assert (
        str(contact(said, larger, read_problems(larger, "train"), data_env(larger))) == "none"
    )  # three numbers: no multiset of two


def test_states_are_compared_where_they_were_what_was_split(place: Place) -> None:
    [source] = card(place.data).trained_on
    states = {**source.model_dump(), "env": {**source.env, "split_by": "states"}}
    said = card(place.data).with_facts(trained_on=[states])
    spec = data_env(place.data)
    problems = [
        {"id": f"{target}:1-{target - 1}", "numbers": [1, target - 1], "target": target} for target in range(2, 40)
    ]
    ours = [one for one in problems if one["target"] <= 20 and spec.split_of((one["target"], one["target"])) == "train"]
    found = contact(said, place.folder, problems, data_env(place.data))
    assert found.shared == len(ours) and "a winning child state of the training split" in str(found)


def test_what_a_card_does_not_say_is_unknown(place: Place) -> None:
    env = data_env(place.data)
    problems = read_problems(place.data, "test")
    assert str(contact(Card(), place.data, problems, env)) == "unknown for training: the checkpoint's card does not say"
    assert contact(Card(trained=("sft", "rl")), place.data, problems, env).unknown == ["sft", "rl"]
    assert contact(card(place.data, "sft", "rl"), place.data, problems, env).unknown == ["rl"]
    both = card(place.data, "sft", "rl").with_problems(trained_on(place.data, "rl", env))
    assert str(contact(both, place.data, problems, env)) == "none"
    assert both.with_problems(trained_on(place.data, "rl", env)) == both  # a run that goes on


@pytest.mark.parametrize(
    "spoilt",
    [
        {"trained_on": 3}, {"trained_on": [{}]}, {"trained_on": [{"stage": "sft", "hash": 1}]},
        {"trained_on": [{"stage": "sft", "split": "train", "hash": "a", "env": {"numbers": 3}}]},
    ],
)  # fmt: skip
def test_a_spoilt_card_is_refused(place: Place, spoilt: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="trained_on"):
        contact(Card.parse(spoilt, "a card"), place.data, [], data_env(place.data))


def test_an_evaluation_on_training_problems_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.checkpoint(**card(place.data).content())
    folder = place.evaluation("seen", split="train")
    told = "4 of 4 problems have a number multiset of the training split, 4 are training problems"
    assert f"apr: contact with training: {told}\n" in capsys.readouterr().err
    expected = {"problems": 4, "shared": 4, "seen": 4, "by": "number multiset", "unknown": []}
    for name in ("summary.json", "manifest.json"):
        assert json.loads((folder / name).read_text())["contact"] == expected
    page = place.report(folder)
    assert page.count(told) == 2  # before the numbers, and among what the evaluation was made with
    assert told in (place.out / "data" / "in_force.csv").read_text().replace('"', "")


def test_an_evaluation_on_held_out_problems_says_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.checkpoint(**card(place.data).content())
    folder = place.evaluation()
    assert "contact" not in capsys.readouterr().err
    assert json.loads((folder / "summary.json").read_text())["contact"]["shared"] == 0
    place.report(folder)
    assert ",none,none," in (place.out / "data" / "in_force.csv").read_text()


def test_what_is_unknown_is_said_to_be(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place.evaluation()
    told = "unknown for sft: the checkpoint's card does not say"
    assert f"apr: contact with training: {told}" in capsys.readouterr().err
    place.report(folder)
    assert told in (place.out / "summary.md").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "contact": {"shared": "all"}}))
    place.out.rename(place.folder / "before")
    assert "contact" in place.refused(DataError, folder)
    del manifest["contact"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    place.report(folder)
    assert "unknown: this evaluation was made before contact was recorded" in (place.out / "summary.md").read_text()


@pytest.mark.parametrize("name", ["sos_plus", "spawn_join"])
def test_the_shipped_checkpoints_say_what_they_were_trained_on(name: str) -> None:
    """The problems of tiny_cpu.yaml, whose training problems have that hash, in one shard."""
    config = load(DataConfig, [preset("data", "tiny_cpu")])
    [source] = Card.read(CHECKPOINTS / name).trained_on
    assert source.env == config.env.model_dump()
    assert (source.stage, source.split) == ("sft", "train")
