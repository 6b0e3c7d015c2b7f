"""Runs the cluster until Ctrl-C: `python -m examples.ha [--folder DIR] [--seconds N]`."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from examples.ha.cluster import Cluster, a_cluster


def told(cluster: Cluster, folder: Path) -> str:
    """What runs where, and what to try next."""
    primary = cluster.database.primary()
    lines = [f"etcd        {cluster.database.etcd.address}"]
    for node in cluster.database.nodes:
        role = "primary" if node is primary else "standby"
        lines.append(
            f"PostgreSQL  {node.address}  {node.name}, {role}, Patroni {node.rest}"
            f" (pid {node.patroni.pid})"
        )
    lines += [
        f"broker      REST {broker.http}  native {broker.native}  gRPC {broker.grpc}"
        f"  {broker.name} (pid {broker.process.pid})"
        for broker in cluster.brokers
    ]
    lines += [f"worker      pid {worker.pid}" for worker in cluster.workers]
    first, second, *_ = cluster.brokers
    addresses = ",".join(broker.native for broker in cluster.brokers)
    return (
        "\n".join(lines)
        + f"""
logs and data in {folder}

Try next, in another terminal:
  curl -X POST http://{first.http}/api/v1/tasks -H 'Content-Type: application/json' \\
    -d '{{"task_type": "hello", "payload": "eyJuYW1lIjogIkFkYSJ9"}}'
  curl http://{second.http}/api/v1/tasks?limit=5
  curl http://{second.http}/api/v1/cluster
  .venv/bin/tq cluster --url tq://{addresses}
  .venv/bin/tq submit count '{{"to": 5}}' --wait --url tq://{addresses}

Then break it, and try them again:
  curl {primary.rest}/cluster   # who is the primary
  kill -9 $(head -1 {folder}/{primary.name}/data/postmaster.pid)   # the primary's PostgreSQL
  kill -9 {first.process.pid}   # a broker
Ctrl-C stops everything."""
    )


def main() -> int:
    """Parse the command line, start, wait, stop."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.ha", description="A cluster with high availability, here."
    )
    parser.add_argument("--folder", type=Path, help="where data and logs go; it is kept")
    parser.add_argument("--seconds", type=float, default=1e8, help="stop after so long")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="tq-ha-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # the database's user passes through to its own folders
    try:
        with a_cluster(folder) as cluster:
            print(told(cluster, folder), flush=True)
            time.sleep(options.seconds)
    except KeyboardInterrupt:
        pass
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print("stopped", file=sys.stderr)
    return 0


def _leave(_number: int, _frame: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what has begun to stop is not left half-way
    raise KeyboardInterrupt  # by way of every `finally`


if __name__ == "__main__":
    sys.exit(main())
