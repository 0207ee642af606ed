"""A report's numbers against those that `tests/recompute.py`, which shares no code with it, works out from the traces."""

from pathlib import Path

import recompute
from solver_evaluations import evaluation, make_data

from apr.report.build import build_report


def test_every_number_can_be_worked_out_again(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    folders = [
        evaluation(tmp_path / "serial", data, "sos_plus", [0]),
        evaluation(tmp_path / "spawned", data, "spawn_join", [0]),
        evaluation(tmp_path / "voted", data, "sos_plus", [1, 2, 3]),
    ]
    out = tmp_path / "report"
    build_report(folders, None, out, "Report")
    found = recompute.check(out, folders)
    assert found.wrong == [] and found.count > 3_000

    results = out / "data" / "results.csv"
    lines = results.read_text().splitlines()
    column = lines[0].split(",").index("accuracy")
    cells = lines[1].split(",")
    cells[column] = str(float(cells[column]) + 0.001)
    results.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    assert len(recompute.check(out, folders).wrong) == 1  # it notices
