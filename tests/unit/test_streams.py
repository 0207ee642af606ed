"""Standard streams may be closed, full, piped into `head`, narrow, or of a poor encoding; no command minds."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import pytest

from apr.progress import cut, time_left

ROOT = Path(__file__).parents[2]
APR = f"{sys.executable} -m apr.cli"
DATA = "env: {name: countdown, numbers: 2, low: 1, high: 9, target_low: 2, target_high: 20}\ntrain: 8\nvalidation: 2\ntest: 2\n"
LONG = ["sft --help", "rl --config tiny_cpu --print-config", "data generate --keys e", "--help", "quickstart --help"]
SHOWN = [*LONG, "--version", "eval --keys engine"]


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace",
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("command", LONG)
@pytest.mark.parametrize("reader", ["head -1", "head -c 10", "true"])
def test_output_may_be_cut_off(command: str, reader: str) -> None:
    done = shell(f"{APR} {command} | {reader}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", SHOWN)
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(command: str, closed: str) -> None:
    assert shell(f"{APR} {command} {closed}").returncode == 0


@pytest.mark.parametrize(
    "command", ["evl", "sft stepz=1", "eval checkpoint=none data=none", "view none", "data verify none"]
)
def test_errors_keep_their_status_with_error_closed_or_cut_off(command: str) -> None:
    for line in (f"{APR} {command} 2>&-", f"{APR} {command} >&- 2>&-", f"{APR} {command} 2>&1 >/dev/null | true"):
        done = shell(line)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("command", LONG)
def test_a_full_disk_is_no_traceback_and_no_success(command: str) -> None:
    done = shell(f"{APR} {command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "apr: failed: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("streams", ["| true", ">&- 2>&-", "> /dev/null 2> /dev/full", "2>&1 | head -c 1"])
def test_a_run_ends_well_whoever_listens(streams: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"{DATA}solvers: {{a: {{protocol: serial}}}}\n", encoding="utf-8")
    done = shell(f"{APR} data generate --config {tmp_path}/data.yaml out={tmp_path}/out {streams}")
    assert done.returncode == 0 and (tmp_path / "out" / "README.md").is_file()
    assert not (tmp_path / "out" / ".lock").read_bytes().replace(b"process ", b"").strip(b"0123456789")
    assert shell(f"{APR} data verify {tmp_path}/out {streams}").returncode == 0


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_what_an_encoding_lacks_is_escaped(environment: dict[str, str], tmp_path: Path) -> None:
    name = tmp_path / "größe-木-\udcff.yaml"
    for line in (
        f"{APR} sft --config '{os.fsdecode(name)}'",
        f"{APR} view '{name}'",
        f"{APR} rl wandb=木 --print-config",
    ):
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, env={**os.environ, **environment})
        assert b"Traceback" not in done.stderr and done.returncode in (0, 2), done.stderr
        assert done.stderr.startswith(b"apr: error: ") or done.stdout.startswith(b"seed: ")


def on_terminal(columns: int, what: str) -> str:
    """What a progress of a hundred quick steps writes to a terminal."""
    code = f"""
import apr.progress as p, time
with p.Progress({what!r}, 100) as progress:
    for _ in range(100):
        progress.printed = 0
        progress.advance(note="loss 0.123")
"""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=follower)
    os.close(follower)
    written = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        if not chunk:
            break
        written += chunk
    os.close(leader)
    assert process.wait() == 0
    return written.decode()


@pytest.mark.parametrize("columns", [20, 40, 64, 80, 200])
@pytest.mark.parametrize(
    "what", ["eval spawn_join_after_rl", "eval a", f"eval {'x' * 90}", f"eval {'木' * 30}", "a\nb\tc\x1b[1m"]
)
def test_progress_stays_in_one_row(columns: int, what: str) -> None:
    written = on_terminal(columns, what).replace("\x1b[K", "")
    rows = [row for row in re.split(r"[\r\n]+", written) if row]
    assert len(rows) >= 100 and written.count("\n") == 1
    assert max(sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in row) for row in rows) < columns
    assert columns < 64 or rows[-1].startswith("[####################] ")


@pytest.mark.parametrize(
    ("line", "columns", "kept"),
    [
        ("abc", 3, "abc"),
        ("abc", 2, "ab"),
        ("木木", 3, "木"),
        ("e\u0301e", 2, "e\u0301e"),
        ("a\nb", 9, "a?b"),
        ("a", 0, ""),
    ],
)
def test_lines_are_cut_by_what_they_take(line: str, columns: int, kept: str) -> None:
    assert cut(line, columns) == kept


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0s"), (61, "1m 01s"), (3599.9, "1h 00m"), (7260, "2h 01m")])
def test_time_left_is_readable(seconds: float, said: str) -> None:
    assert time_left(seconds) == said
