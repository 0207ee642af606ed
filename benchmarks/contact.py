"""How many held-out problems have a winning child state that a training problem has as well: what one step leaves of their
numbers, with the same target. Roots are kept apart by every split; states below them by `split_by=states` alone.

    python benchmarks/contact.py [--config PRESET] [env.split_by=states ...]

Draws the problems of a preset of `apr data generate`, each split from its seed; no data set is needed.
"""

from __future__ import annotations

import argparse
from typing import Any

from apr.config import DataConfig
from apr.presets import load, preset
from envs.countdown.states import winning_states

State = tuple[int, ...]


def wins(problems: list[dict[str, Any]]) -> list[set[State]]:
    """The winning child states of each problem: the target, then the numbers."""
    targets = [one["target"] for one in problems]
    states = winning_states([one["numbers"] for one in problems], targets)
    return [{(target, *state) for state in row} for row, target in zip(states, targets)]


def row(split: str, own: list[set[State]], seen: set[State]) -> str:
    some = sum(bool(states & seen) for states in own)
    every = sum(states <= seen for states in own)
    mean = sum(map(len, own)) / len(own)
    return f"| {split} | {len(own):,} | {mean:.2f} | {some / len(own):.1%} | {every / len(own):.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny_cpu", help="a preset of `apr data generate`")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    config = load(DataConfig, [preset("data", arguments.config)], arguments.settings)
    env = config.env.build()
    train, *held_out = (
        list(env.problems(split, getattr(config, split), config.seed)) for split in ("train", "validation", "test")
    )
    seen = set().union(*wins(train))
    print(f"{len(train):,} training problems with {len(seen):,} winning child states; of the others:\n")
    print("| split | problems | winning child states each | one of them in training | all of them |")
    print("| --- | --- | --- | --- | --- |")
    for split, problems in zip(("validation", "test"), held_out):
        print(row(split, wins(problems), seen))


if __name__ == "__main__":
    main()
