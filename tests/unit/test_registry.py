"""Environments are found by name; files run only if the user named them."""

from pathlib import Path

import pytest

from apr import user_code
from apr.config import DataConfig, EnvOfData, SftConfig
from apr.data.store import data_env
from apr.errors import ConfigError
from apr.presets import check, dump, load, preset
from apr.user_code import NAMED, allow, short
from envs.registry import at_hand, environment, known, listing

TASK = """
from pathlib import Path

from envs.base import Options, Verdict
from envs.environment import Environment

Path(__file__).with_suffix(".ran").touch()


class Guess(Environment[Options]):
    name = "guess"
    title = "Guessing"
    about = "Guess a number."

    def sample(self, rng):
        return {"secret": rng.randrange(10)}

    def verify(self, problem, answer):
        return Verdict(answer == str(problem["secret"]), "compared")
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "guess.py"
    path.write_text(TASK)
    return path


def test_countdown_is_known_and_listed() -> None:
    assert [(one.name, one.source) for one in known()] == [("countdown", "built in")]
    assert "numbers=4" in listing() and "env=PATH.py:CLASS" in listing()


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean countdown"):
        environment("countdwn")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"numbrs": 3}, "unknown option numbrs, did you mean numbers"),
        ({"numbers": 9}, "numbers: .* 6"),
        ({"low": 9, "high": 3}, "low must not exceed high"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        environment("countdown", options)


def test_a_file_runs_only_if_the_user_named_it(task: Path) -> None:
    name = f"{task}:Guess"
    stored = dump(check(DataConfig, {"env": name, "out": task.parent / "data"}, "test", NAMED))
    assert task.with_suffix(".ran").exists() and "test_share" in stored
    other = task.with_name("other.py")  # another file, which a data set from elsewhere names
    other.write_text(TASK)
    folder = task.parent / "data"
    folder.mkdir()
    (folder / "config.yaml").write_text(stored.replace("guess.py", "other.py"))
    with pytest.raises(ConfigError, match="is run only if you name it yourself: add env="):
        data_env(folder)
    assert not other.with_suffix(".ran").exists()
    assert data_env(folder, EnvOfData.model_validate(f"{other}:Guess", context=NAMED)).name == "guess"
    with pytest.raises(ConfigError, match="not of countdown: name that file, wherever it lies now"):
        data_env(folder, "countdown")


def test_what_reads_data_takes_no_options_of_its_environment() -> None:
    assert load(SftConfig, [], ["env=countdown"]).env == EnvOfData(name="countdown")
    with pytest.raises(ConfigError, match=r"unknown key env\.numbers"):
        load(SftConfig, [], ["env=countdown", "env.numbers=3"])
    with pytest.raises(ConfigError, match="no environment 'contdown' .did you mean countdown"):
        load(SftConfig, [], ["env=contdown"])


def test_records_hold_no_folder_and_are_matched_by_file(task: Path) -> None:
    name = f"{task}:Guess"
    allow(name)
    env = environment(name)
    assert env.config()["name"] == "guess.py:Guess" == short(name)
    again = at_hand(env.config())
    assert again is not None and again.config() == env.config()
    assert at_hand({"name": "elsewhere", "x": 1}) is None and at_hand({"name": 3}) is None and at_hand({}) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1/0", "fails when it is imported: ZeroDivisionError"),
        ("def f(:", "fails when it is imported: SyntaxError"),
        ("import no_such_module", "fails when it is imported: ModuleNotFoundError"),
        ("Guess = 3", "no subclass of envs.environment.Environment"),
        ("class Other: pass", "has no Guess: it has Other"),
        ("class Guest: pass", "has no Guess, did you mean Guest"),
        ("import sys; sys.exit(0)", r"fails when it is imported: SystemExit: 0 \(broken.py:1, in <module>\)"),
    ],
)
def test_a_file_that_holds_no_environment_says_why(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    allow(f"{path}:Guess")
    with pytest.raises(ConfigError, match=said):
        environment(f"{path}:Guess")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    allow(f"{tmp_path}/none.py:Guess")
    with pytest.raises(ConfigError, match="no file .*none.py"):
        environment(f"{tmp_path}/none.py:Guess")
    with pytest.raises(ConfigError, match="not of the form PATH.py:NAME"):
        user_code.load("none", "reward.function")


def test_another_environment_drops_the_options_of_the_one_before() -> None:
    config = load(DataConfig, [preset("data", "tiny_cpu")], ["env=countdown"])
    assert config.env.given["numbers"] == 3  # the same one keeps them
    config = load(DataConfig, [preset("data", "tiny_cpu")], ["env.numbers=2"])
    assert (config.env.given["numbers"], config.env.given["high"]) == (2, 20)
