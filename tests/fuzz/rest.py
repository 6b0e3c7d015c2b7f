"""`python -m tests.fuzz.rest --cases 5000`: schemathesis, with all its checks, on a started server.

Runs round by round, each on a server of its own and with a seed of its own, until so many cases
have been made; a round with a finding prints it and ends the run.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.broker import BrokerProcess, a_broker_process

KEY = "a-key-for-automation-of-32-characters-or-more"
HOOKS = "tests.fuzz.hooks"
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.rest", description=__doc__)
    parser.add_argument("--cases", type=int, default=5_000, help="cases to make at least")
    parser.add_argument("--examples", type=int, default=300, help="examples for each operation")
    parser.add_argument("--seed", type=int, help="seed of the first round")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    made = 0
    with tempfile.TemporaryDirectory() as folder:
        while made < options.cases:
            with a_server_with_a_key(Path(folder) / str(seed)) as broker:
                number, findings = run_schemathesis(broker, options.examples, seed)
            if findings:
                raise SystemExit(findings)
            made += number
            print(f"{made} cases, no finding (latest seed {seed})", flush=True)
            seed += 1


@contextmanager
def a_server_with_a_key(folder: Path) -> Iterator[BrokerProcess]:
    """A server that demands a key, so that it is seen whether it does."""
    folder.mkdir(parents=True)
    settings = folder / "tq.toml"
    settings.write_text(f'[access]\nbootstrap_key = "{KEY}"\nrate_limit = 0\n')
    settings.chmod(0o600)
    with a_broker_process(folder / "data", "--config", str(settings)) as broker:
        yield broker


def run_schemathesis(broker: BrokerProcess, examples: int, seed: int) -> tuple[int, str]:
    """How many cases it made, and what it found; empty if nothing."""
    report = broker.folder.with_suffix(".json")
    ran = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run"),
            *(f"http://{broker.http}/openapi.json", "--checks", "all"),
            *("--exclude-checks", "use_after_free"),  # the hooks have another in its place
            *("-H", f"Authorization: Bearer {KEY}", "--max-examples", str(examples)),
            *("--seed", str(seed), "--continue-on-failure", "--request-timeout", "20"),
            *("--report", "json", "--report-json-path", str(report)),
        ],
        cwd=broker.folder.parent,  # it keeps what it found in a folder there
        env=os.environ | {"SCHEMATHESIS_HOOKS": HOOKS, "NO_PROXY": "*", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    number: int = json.loads(report.read_text())["test_cases"]["generated"]
    return number, "" if ran.returncode == 0 else ran.stdout[-20_000:] + ran.stderr[-2_000:]


if __name__ == "__main__":
    main()
