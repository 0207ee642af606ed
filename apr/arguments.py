"""The arguments of every command, and their help, which lists the keys of a configured command and its presets."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from apr import __version__
from apr.values import typed_path

EPILOG = """configuration: shipped presets are named (`--config tiny_cpu`), files are paths; later files win, then
`dotted.key=value` overrides. `--print-config` shows the result, `--dry-run` also checks what it needs.

examples:
  apr quickstart
  apr data generate --config tiny_cpu out=runs/data
  apr data import train_apr.json --out runs/published
  apr data import problems.csv --env countdown --out runs/problems
  apr sft --config tiny_cpu data=runs/data solver=spawn_join out=runs/sft
  apr rl --config tiny_cpu data=runs/data checkpoint=runs/sft/checkpoint cluster.address=local
  apr rl --resume runs/rl
  apr eval --config tiny_cpu data=runs/data checkpoint=runs/sft/checkpoint out=runs/eval/sft
  apr report runs/eval/sft runs/eval/rl runs/rl --out report
  apr view runs/eval/sft runs/eval/rl --out view.html
"""


class Parser(argparse.ArgumentParser):
    """A parser of one command. `stage`: what it configures, if anything; its help then lists the keys and presets."""

    stage: str | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.set_defaults(parser=self)  # the innermost one stays

    def format_help(self) -> str:
        return super().format_help() + (f"\n{keys_text(self.stage)}" if self.stage else "")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line with status 2, and name the known word that was probably meant."""
        if wrong := re.match(r"argument .*: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            known = re.findall(r"'(.*?)'", wrong[2])
            message += _meant(wrong[1], known)
        elif wrong := re.match(r"unrecognized arguments: (--[^ =]+)", message):
            message += _meant(wrong[1], [option for action in self._actions for option in action.option_strings])
        super().error(message)


def _meant(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def keys_text(stage: str, word: str = "") -> str:
    """The keys of a command that mention `word`, each with its type, default and description; without a word all of them, and
    the command's presets. Raises `ConfigError` if no key does."""
    from apr.config import KINDS
    from apr.errors import ConfigError
    from apr.keys import keys_of, meant
    from apr.presets import available

    width = max(20, shutil.get_terminal_size().columns - 2)
    keys = list(keys_of(KINDS[stage]))
    chosen = [key for key in keys if key.has(word)]
    if not chosen:
        hint = meant(word, [part for key in keys for part in key.name.split(".")])
        raise ConfigError(f"no key of this command mentions {word!r}{hint}")
    lines = [] if word else ["keys, as key=default (type):"]
    for key in chosen:
        lines += _entry(key.head, key.description, width)
    if not word and (presets := available(stage)):
        lines += ["", "presets, for preset=NAME:" if stage == "quickstart" else "presets, for --config NAME:"]
        for name, about in presets.items():
            lines += _entry(name, about, width)
    return "\n".join(lines) + "\n"


def _entry(head: str, about: str, width: int) -> list[str]:
    return [
        *textwrap.wrap(head, width, initial_indent="  ", subsequent_indent="    "),
        *textwrap.wrap(about, width, initial_indent="      ", subsequent_indent="      "),
    ]


def parser() -> Parser:
    top = Parser(
        prog="apr",
        description="Train language models to spawn child threads of their own decoding and join their results.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"apr {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="make or check problems and demonstrations")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    _configured("data", actions.add_parser("generate", help="problems by split, and demonstrations from each teacher"))
    verify = actions.add_parser(
        "verify", help="check a data folder: every problem, every solution, every trace; or a file of scripts"
    )
    verify.add_argument("folder", type=typed_path, metavar="PATH", help="a data folder, or JSON lines of scripts")
    verify.add_argument("--protocol", help="of scripts: the protocol that must be able to express all of them")
    _own_env(verify)
    published = actions.add_parser(
        "import", help="problems of a table as a data set (--env), or APR's published JSON with what its bugs damaged"
    )
    published.add_argument(
        "file", type=typed_path, help="with --env: CSV, JSON, JSON lines or Parquet; else rows with trace_dict or "
        "search_path, or the prompts of the RL data",
    )  # fmt: skip
    published.add_argument(
        "--env",
        metavar="NAME",
        help="whose problems they are: a name that `apr envs` lists, or PATH.py:CLASS",
    )
    published.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN",
        help="with --env: which column of the file is which, such as numbers=operands; repeatable",
    )  # fmt: skip
    published.add_argument(
        "--split", choices=("train", "validation", "test"),
        help="with --env: the split of all problems (default: the file's column `split`, or the environment's rule)",
    )  # fmt: skip
    published.add_argument("--out", type=typed_path, help="folder to write (default: runs/import/NAME)")
    published.add_argument("--dry-run", action="store_true", help="only report; write nothing")
    export = actions.add_parser("export", help="write traces of the paper speller as published JSON")
    export.add_argument("traces", type=typed_path, help="a file of traces, as `apr data import` writes it")
    export.add_argument("--out", type=typed_path, required=True, help="JSON file to write")
    _configured("sft", commands.add_parser("sft", help="supervised fine-tuning on demonstrations"))
    rl = commands.add_parser("rl", help="reinforcement learning over spawned threads")
    _configured("rl", rl)
    rl.add_argument("--resume", type=typed_path, metavar="RUN", help="go on with this run from its newest checkpoint")
    _configured("eval", commands.add_parser("eval", help="evaluate a checkpoint on held-out problems"))
    report = commands.add_parser("report", help="a page, figures and data from evaluations and RL runs")
    report.add_argument(
        "runs", type=typed_path, nargs="+", metavar="RUN", help="folders written by `apr eval` and `apr rl`"
    )
    report.add_argument(
        "--data", type=typed_path, help="the data folder, for the teachers' own success (default: the evaluations')"
    )
    _own_env(report)
    report.add_argument("--out", type=typed_path, default=Path("report"), help="folder to write (default: report)")
    report.add_argument("--title", default="Spawn and join: evaluation report")
    view = commands.add_parser("view", help="one HTML file in which traces are looked at, one by one or side by side")
    view.add_argument(
        "paths",
        type=typed_path,
        nargs="+",
        metavar="PATH",
        help="folder of an evaluation or of an RL run, or a file of traces",
    )
    _own_env(view)
    view.add_argument("--out", type=typed_path, default=Path("view.html"))
    view.add_argument("--title", help="of the page (default: the names of the runs)")
    view.add_argument("--limit", type=int, metavar="N", help="only the first N traces of each path")
    view.add_argument("--outcome", choices=("all", "correct", "wrong"), default="all", help="only such traces")
    view.add_argument("--step", type=int, metavar="N", help="of RL runs named by folder (default: the newest)")
    export = commands.add_parser("export", help="a checkpoint as a Hugging Face folder, with a model card")
    export.add_argument(
        "checkpoint", type=typed_path, help="a checkpoint, an adapter's folder, or that of an SFT or RL run"
    )
    export.add_argument("--out", type=typed_path, required=True, help="folder to write")
    export.add_argument(
        "--eval",
        type=typed_path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="its evaluation, for the card; repeatable",
    )
    _own_env(export)
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    export.add_argument(
        "--base", type=typed_path, help="of an adapter: the model that it adapts, if it names none here"
    )
    export.add_argument(
        "--license", default="unknown", help="for the card, as Hugging Face names it: apache-2.0, mit, ..."
    )
    start = commands.add_parser("quickstart", help="the whole path on two cores: data, SFT, RL, evaluation, report")
    _configured("quickstart", start)
    commands.add_parser("envs", help="the environments that `env=NAME` finds, with their options")
    commands.add_parser("doctor", help="what is installed, what does not fit together, and what to do about it")
    return top


def _own_env(command: Parser) -> None:
    command.add_argument(
        "--env", metavar="PATH.py:CLASS", help="the task, where it is a file of yours: it is run only if you name it"
    )


def _configured(stage: str, command: Parser) -> None:
    command.stage = stage
    command.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="preset or YAML file; repeatable"
    )
    command.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    command.add_argument(
        "--keys", metavar="WORD", help="list the keys whose name or description has this word, and stop"
    )
    command.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    command.add_argument("--dry-run", action="store_true", help="check the configuration and what it needs, and stop")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of one command. Overrides, which argparse takes in one place only, may stand between options."""
    arguments, left = parser().parse_known_args(argv)
    overrides = [word for word in left if "=" in word and not word.startswith("-")]
    if left and (overrides != left or not hasattr(arguments, "overrides")):
        arguments.parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides += overrides
    return arguments
