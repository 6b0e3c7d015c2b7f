"""`tq cluster`: the brokers, who leads, and the database under them."""

import sys
from datetime import datetime
from typing import Any, Final

from taskqueue.cli.options import HERE, ONCE, LiveForm, Target
from taskqueue.cli.output import Form, as_row, is_for_programs, print_record, print_rows
from taskqueue.cli.watching import shown
from taskqueue.core.clock import EPOCH
from taskqueue.wire.cluster import ClusterBrokerReply, ClusterReply

BROKER_COLUMNS: Final = ("id", "address", "version", "since", "silent", "load", "workers", "role")
NODE_COLUMNS: Final = ("name", "role", "state", "lag_bytes", "lag_seconds")


def cluster(*, form: LiveForm = ONCE, broker: Target = HERE) -> None:
    """Show the brokers and the database under them; exit code 1 where not all is well."""

    def show() -> None:
        view = client.cluster()
        if form.output == "id":
            print("\n".join(one.broker_id for one in view.brokers))
        elif is_for_programs(form) or form.fields:
            print_record(as_row(view), form)
        else:
            _print_tables(view, form)
        if not view.healthy:
            print(f"tq: the cluster is degraded: {view.complaint}", file=sys.stderr)
            raise SystemExit(1)

    with broker.connect() as client:
        shown(form, show)


def _print_tables(view: ClusterReply, form: Form) -> None:
    print_record(
        {
            "status": "healthy" if view.healthy else "degraded",
            "leader": "nobody" if view.leader is None else view.leader.broker_id,
            "term": view.term,
            "quorum": view.quorum,
        },
        form,
    )
    print()
    # By their clock, not that of this machine. While no primary answers, none may be heard of.
    now = max((broker.last_seen for broker in view.brokers), default=EPOCH)
    print_rows([_broker_row(broker, now) for broker in view.brokers], form, BROKER_COLUMNS)
    if view.database:
        print()
        print_rows([as_row(node) for node in view.database], form, NODE_COLUMNS)


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
