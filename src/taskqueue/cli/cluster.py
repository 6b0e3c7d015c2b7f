"""`tq cluster`: the brokers, who leads, and the database under them."""

import sys
from datetime import datetime
from typing import Any, Final

from taskqueue.cli.options import ApiKey, Output, Url
from taskqueue.cli.output import as_row, print_record, print_rows
from taskqueue.cli.tasks import connected
from taskqueue.core.clock import EPOCH
from taskqueue.wire.cluster import ClusterBrokerReply, ClusterReply

BROKER_COLUMNS: Final = ("id", "address", "version", "since", "silent", "load", "workers", "role")
NODE_COLUMNS: Final = ("name", "role", "state", "lag_bytes", "lag_seconds")


def cluster(*, output: Output = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Show the brokers and the database under them; exit code 1 where not all is well."""
    with connected(url, api_key) as client:
        view = client.cluster()
    match output:
        case "json" | "jsonl":
            print_record(as_row(view), output)
        case "id":
            print("\n".join(broker.broker_id for broker in view.brokers))
        case _:
            _print_tables(view)
    if not view.healthy:
        print(f"tq: the cluster is degraded: {view.complaint}", file=sys.stderr)
        raise SystemExit(1)


def _print_tables(view: ClusterReply) -> None:
    print_record(
        {
            "status": "healthy" if view.healthy else "degraded",
            "leader": "nobody" if view.leader is None else view.leader.broker_id,
            "term": view.term,
            "quorum": view.quorum,
        },
        None,
    )
    print()
    # By their clock, not that of this machine. While no primary answers, none may be heard of.
    now = max((broker.last_seen for broker in view.brokers), default=EPOCH)
    print_rows([_broker_row(broker, now) for broker in view.brokers], None, BROKER_COLUMNS)
    if view.database:
        print()
        print_rows([as_row(node) for node in view.database], None, NODE_COLUMNS)


def _broker_row(broker: ClusterBrokerReply, now: datetime) -> dict[str, Any]:
    roles = {"leader": broker.is_leader, "asked": broker.is_me}
    return {
        "id": broker.broker_id,
        "address": broker.address,
        "version": broker.version,
        "since": None if broker.since is None else f"{broker.since:%Y-%m-%d %H:%M}",
        "silent": f"{(now - broker.last_seen).total_seconds():.0f} s",
        "load": f"{broker.load:.1f}/s",
        "workers": broker.connected_workers,
        "role": ", ".join(role for role, has_it in roles.items() if has_it) or None,
    }
