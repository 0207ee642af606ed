"""What every environment promises (`envs.base.Env`), as tests to inherit.

    class TestSorting(EnvContract):
        env = Sorting()

        def solution(self, problem):
            return " ".join(map(str, sorted(problem["numbers"])))

pytest collects the methods of the subclass. Each raises `AssertionError` where a promise is broken.
"""

from __future__ import annotations

import json
import pickle
import random
from itertools import islice
from typing import Any

from apr.errors import ConfigError, DataError
from apr.protocols import PROTOCOLS, protocol_by_name
from apr.tokens.speller import Speller
from apr.tokens.words import WordsSpeller
from envs.base import SPLITS, Env, Problem, Teacher, TeacherOptions

COUNT = 8
TEXTS = (
    "", " ", "\n", "1", "=", "<answer></answer>", "\\boxed{", "no solution", "9" * 5_000, "(" * 3_000, "1+" * 3_000,
    "\x00\ud7ff\U0001f600", "null", "[1, 2", "{}", "__import__('os')",
)  # fmt: skip


class EnvContract:
    """Set `env`; give `solution` where right answers are easy to write, and `teachers` where there are any."""

    env: Env
    teachers: tuple[TeacherOptions, ...] = ()

    def solution(self, problem: Problem) -> str | None:
        """A right answer, as a thread would write it; None if none is at hand."""
        return None

    def speller(self) -> Speller | None:
        """What prompts and demonstrations are spelt in: the environment's own words, if it has any."""
        return WordsSpeller(self.env.vocabulary()) if self.env.vocabulary() else None

    def problems(self, split: str = "train", seed: int = 7) -> list[Problem]:
        return list(self.env.problems(split, COUNT, seed))

    def test_problems_are_distinct_plain_and_the_same_from_the_same_seed(self) -> None:
        for split in SPLITS:
            problems = self.problems(split)
            assert len({problem["id"] for problem in problems}) == len(problems) == COUNT
            assert self.problems(split) == problems != self.problems(split, 8)
            assert json.loads(json.dumps(problems)) == problems
            assert all(isinstance(problem["id"], str) for problem in problems)

    def test_fewer_problems_are_the_first_of_more(self) -> None:
        assert list(islice(self.env.problems("train", COUNT, 7), 3)) == self.problems()[:3]

    def test_splits_share_nothing(self) -> None:
        for split in SPLITS:
            for parts in self.env.parts(self.problems(split)):
                assert parts, "a problem without parts is in no split"
                assert {self.env.split_of(part) for part in parts} == {split}

    def test_an_unknown_split_is_refused(self) -> None:
        try:
            list(self.env.problems("holdout", 1, 0))
        except DataError as error:
            assert "train" in str(error)
        else:
            raise AssertionError("problems of the split `holdout` were drawn")

    def test_stored_problems_are_sound_and_others_are_not(self) -> None:
        problems = self.problems()
        assert self.env.faults(problems) == {}
        assert self.env.problem({name: value for name, value in problems[0].items() if name != "id"}) == problems[0]
        renamed = [{**problems[0], "id": "another"}, problems[1]]
        assert set(self.env.faults(renamed)) == {0}
        for row in ({}, {"id": problems[0]["id"]}, dict.fromkeys(problems[0])):
            try:
                self.env.problem(row)
            except DataError as error:
                assert str(error)
            else:
                raise AssertionError(f"{row!r} was taken for a problem")

    def test_a_problem_can_be_told_and_described(self) -> None:
        problems = self.problems()
        for problem in problems:
            assert self.env.describe(problem).strip()
        told = [self._told(problem) for problem in problems]
        assert len(set(told)) == len(told), "two problems have the same prompt"

    def test_right_answers_are_right_and_missing_ones_are_not(self) -> None:
        for problem in self.problems():
            for answer in (None, "", "  "):
                verdict = self.env.verify(problem, answer)
                assert not verdict.ok and verdict.reason, f"verify says {verdict} of {answer!r}, which is no answer"
            if (written := self.solution(problem)) is not None:
                verdict = self.env.verify(problem, self.env.read(written))
                assert verdict.ok and verdict.score == 1.0, verdict

    def test_whatever_the_answer_says_there_is_a_verdict(self) -> None:
        rng, problem = random.Random(0), self.problems()[0]
        for text in (*TEXTS, *self._garbage(rng)):
            answer = self.env.read(text)
            assert isinstance(answer, str), f"read({text!r}) is {answer!r}, no text"
            verdict = self.env.verify(problem, answer)
            assert isinstance(verdict.ok, bool), f"verify says ok={verdict.ok!r} of {answer!r}, not True or False"
            assert verdict.reason and len(verdict.reason) < 500, f"the reason for {answer!r} is empty or very long"
            assert 0 <= verdict.score <= 1 and (not verdict.ok or verdict.score > 0), (
                f"{answer!r} is scored {verdict.score}"
            )

    def test_answers_that_are_equal_are_right_together(self) -> None:
        rng, problem = random.Random(1), self.problems()[0]
        answers = [self.env.read(text) for text in (*TEXTS, *self._garbage(rng))]
        if (written := self.solution(problem)) is not None:
            answers += [self.env.read(written), self.env.read(f" {written} ")]
        verdicts: dict[str, set[bool]] = {}
        for answer in answers:
            key = self.env.canonical(answer)
            assert isinstance(key, str), f"canonical({answer!r}) is {key!r}, no text"
            assert key == self.env.canonical(answer), f"canonical({answer!r}) changes from call to call"
            verdicts.setdefault(key, set()).add(self.env.verify(problem, answer).ok)
        mixed = [key for key, found in verdicts.items() if len(found) > 1]
        assert not mixed, f"answers with the key {mixed[0]!r} are right and wrong"

    def test_another_process_has_the_same_environment(self) -> None:
        copy = pickle.loads(pickle.dumps(self.env))
        assert copy.config() == self.env.config()
        assert list(copy.problems("test", 2, 0)) == list(self.env.problems("test", 2, 0))

    def test_demonstrations_are_laid_out_and_judged(self) -> None:
        if (speller := self.speller()) is None:
            return
        for options in self.teachers:
            assert options.protocol in PROTOCOLS
            teacher = Teacher(self.env, options, speller, protocol_by_name(options.protocol, speller), 0)
            made = [trace for problem in self.problems() if (trace := self.env.demonstrate(problem, teacher))]
            assert made, "the teacher gave up every problem"
            for trace in made:
                assert trace.outcome is not None
                assert trace.outcome.correct == self.env.verify(trace.problem, trace.answer).ok
            assert options.protocol == "serial" or any(len(trace.threads) > 1 for trace in made)

    def _told(self, problem: Problem) -> Any:
        """The problem's prompt, in words or as messages."""
        try:
            return tuple(self.env.words(problem)) if self.env.vocabulary() else json.dumps(self.env.messages(problem))
        except ConfigError as error:
            raise AssertionError(f"the environment has neither words nor messages: {error}") from error

    def _garbage(self, rng: random.Random) -> list[str]:
        alphabet = " 0123456789+-*/=,()<>\\{}abcxyz\n" + " ".join(self.env.vocabulary())[:200]
        return ["".join(rng.choices(alphabet, k=rng.randrange(1, 80))) for _ in range(200)]
