"""An environment of the user's own that fails does so before anything is written, and says where."""

from pathlib import Path

import pytest

from apr.config import DataConfig
from apr.data.generate import generate
from apr.errors import UserError
from apr.presets import check
from apr.user_code import NAMED

TASK = """
from apr.scripts.script import Answer, Say
from envs.base import Options, Verdict
from envs.environment import Environment


class Twice(Environment[Options]):
    name, title, about = "twice", "Twice", "Double a number."

    def sample(self, rng):
        return {"n": rng.randrange(1000)}

    def words(self, problem):
        return ("twice", *str(problem["n"]))

    def vocabulary(self):
        return ("twice", *"0123456789")

    def verify(self, problem, answer):
        return Verdict("".join((answer or "").split()) == str(2 * problem["n"]), "compared")

    def script(self, problem, options, rng):
        return (Answer(tuple(str(2 * problem["n"]))),)
"""


def made(tmp_path: Path, old: str, new: str) -> Path:
    """The folder for a data set of the task with `new` in place of `old`."""
    assert old in TASK
    path = tmp_path / "task.py"
    path.write_text(TASK.replace(old, new))
    content = {
        "env": f"{path}:Twice", "train": 20, "validation": 0, "test": 0, "out": str(tmp_path / "data"),
        "solvers": {"plain": {"protocol": "serial"}},
    }  # fmt: skip
    generate(check(DataConfig, content, "test", NAMED))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return Verdict(", "raise RuntimeError('boom') or (", r"task.py:Twice: RuntimeError: boom \(task.py:\d+, in verify\)"),
        ('"compared")', '"compared", 1.5)', r"scores lie between 0 and 1 \(task.py:\d+, in verify\)"),
        ("return Verdict(", "return bool(", "TypeError"),
        ("Verdict(", "(lambda ok, why: ok)(", "returned True: return a `Verdict`"),
        ('("twice", *str', '("thrice", *str', "'thrice' is no word of this vocabulary"),
        ('("twice", *"', '("twice", "a b", *"', "'a b', which is no word"),
        ('("twice", *"', '("twice", "twice", *"', "'twice' twice"),
        ('problem["n"]))\n\n    def voc', 'problem["m"]))\n\n    def voc', r"KeyError: 'm' \(task.py:\d+, in words\)"),
        ("return (Answer(tuple(str(2 * problem[\"n\"]))),)", 'return (Say(("1",)),)', "does not end with an answer"),
        ("def script", "def other", "has no teacher: write its `script`"),
        ('{"n":', '{"tokens": 1, "n":', "cannot have fields called tokens"),
        ('{"n":', '{"id": 1, "n":', "cannot have fields called id"),
        ('return {"n": ', 'return {"n": "x" if rng.random() < 0.5 else ', "Let `sample` give the same fields each time"),
        ('return {"n":', 'return 1 / 0, {"n":', r"ZeroDivisionError: division by zero \(task.py:\d+, in sample\)"),
        ('return {"n": rng.randrange(1000)}', "return [1]", "return a dictionary of fields by name"),
        ('return {"n":', 'return {"b": b"1", "n":', "the field b of environment twice is of type bytes"),
    ],
)  # fmt: skip
def test_an_environment_that_fails_says_where_and_writes_nothing(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        made(tmp_path, old, new)
    assert not (tmp_path / "data").exists()


def test_a_teacher_that_solves_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path, 'str(2 * problem["n"]))),)', 'str(3 * problem["n"]))),)')
    assert (folder / "README.md").is_file()
    assert "teacher plain solves none of the first 8 problems: compared" in capsys.readouterr().err
