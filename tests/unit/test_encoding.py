"""Files are UTF-8 whatever the locale says, and a byte order mark is skipped where users hand over text."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apr.cli import main

ROOT = Path(__file__).parents[2]
FOLDERS = ("apr", "envs", "solvers", "rl", "benchmarks", "docs", "configs", "examples")
TEXT = {"open": 0, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0, "read_text": -1, "write_text": -1}
BINARY = ("os", "zipfile", "tarfile", "direct")  # whose `open` opens no text
MARK = b"\xef\xbb\xbf"


def undecided(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that open text without naming its encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, getattr(node.func.value, "id", "")
        else:
            name, owner = getattr(node.func, "id", ""), "builtins"
        if "encoding" in options or owner in BINARY or owner[:1].isupper():  # a class of the project's own
            continue
        if isinstance(text := options.get("text", options.get("universal_newlines")), ast.Constant) and text.value:
            yield node.lineno
        if name not in TEXT or (name.endswith("_text") and owner == "builtins"):  # the project's own `write_text`
            continue
        place = TEXT[name] + (owner in ("builtins", "gzip", "io") and name == "open")
        mode = options.get("mode") or (node.args[place] if -1 < place < len(node.args) else None)
        if not (isinstance(mode, ast.Constant) and "b" in str(mode.value)) and not (owner == "gzip" and mode is None):
            yield node.lineno


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_file_is_opened_with_an_encoding(folder: str) -> None:
    found = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert found
    assert not [f"{path.relative_to(ROOT)}:{line}" for path, tree in found.items() for line in undecided(tree)]


@pytest.mark.parametrize(
    "text", ["open('a')", "p.open()", "p.read_text()", "open(a, b)", "gzip.open(p, 'rt')", "run(a, text=True)"]
)  # fmt: skip
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert list(undecided(ast.parse(text))) == [1]
    assert not list(undecided(ast.parse("p.open('rb'); open('a', encoding='utf-8'); gzip.open(p); write_text(p, 'a')")))


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_configuration_is_utf_8_in_any_locale(locale: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_bytes("wandb: größer\n".encode())
    command = [sys.executable, "-m", "apr.cli", "rl", "--config", str(tmp_path / "given.yaml"), "--print-config"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **locale}, capture_output=True, check=True)
    assert b'wandb: "gr\\xF6\\xDFer"' in done.stdout


def test_a_byte_order_mark_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "given.yaml").write_bytes(MARK + b"steps: 7\r\n")
    assert main(["rl", "--config", str(tmp_path / "given.yaml"), "--print-config"]) == 0
    assert "steps: 7\n" in capsys.readouterr().out
    rows = [{"nums": [3, 5, 8], "target": 16, "search_path": "", "trace_dict": {}}]
    said = []
    for mark in (b"", MARK):
        (tmp_path / "rows.json").write_bytes(mark + json.dumps(rows).encode())
        said.append((main(["data", "import", str(tmp_path / "rows.json"), "--dry-run"]), capsys.readouterr().out))
    assert said[0] == said[1]
