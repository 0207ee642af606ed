"""The short form of `benchmarks/chaos.py`: one kill of each kind, and nothing is lost, doubled, changed or left behind."""

import sys
from pathlib import Path

import pytest
from processes import ROOT, left_behind, weights

sys.path.append(str(ROOT / "benchmarks"))
import chaos  # noqa: E402 (found by the line above)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Draws the driver soon after step 1, the learner and an engine soon after step 2, so that both are made again at once.
SEED = 18680


@pytest.mark.parametrize("engine", ["tiny", "shared"])
def test_a_run_survives_the_loss_of_its_driver_its_learner_and_an_engine(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "PROBLEMS", 4)
    undisturbed, config = chaos.settings(tmp_path, engine, steps=4, kills=3)
    quiet = chaos.Run(undisturbed)  # beside the other, for the sake of time
    run, done = chaos.disturbed(config, sorted(chaos.FAULTS), kills=3, seed=SEED)
    assert done == {"driver": 1, "learner": 1, "engine": 1}
    assert (run.driver.returncode, quiet.driver.wait()) == (0, 0), config.out.with_suffix(".log").read_text()
    strands, wrong = chaos.keys_trained(config)
    assert strands > 100 and not wrong
    assert weights(config.out) == weights(undisturbed.out)
    # Ray's own agents try for a minute to tell of the driver's end.
    assert [left_behind(leader, seconds=30, but="ray::.*Agent") for leader in run.leaders] == [{}, {}]
