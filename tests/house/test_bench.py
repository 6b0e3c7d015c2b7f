"""`make bench` in small: every scenario runs and its figures are written."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_scenario_runs_and_is_written_down(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    small = ["--seconds", "0.3", "--drain", "5000", "--deep", "6000", "--json", str(report)]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert ran.returncode == 0, ran.stderr
    written = json.loads(report.read_text())
    assert "synchronous=FULL" in written["durability"]
    assert written["machine"]["cores"] >= 1
    assert len(written["figures"]) >= 14
    assert all(value > 0 for value in written["figures"].values())
    for label in written["figures"]:
        assert label in ran.stdout
