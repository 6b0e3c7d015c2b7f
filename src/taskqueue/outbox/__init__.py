"""Submits that are part of a transaction in your own PostgreSQL, and the relay that sends them."""

from taskqueue.outbox.relaying import Relay, relay
from taskqueue.outbox.submitting import (
    create_table,
    create_table_sync,
    submit,
    submit_sync,
    submit_task,
    submit_task_sync,
)
from taskqueue.outbox.table import NOTIFY, TABLE

__all__ = [
    "NOTIFY",
    "TABLE",
    "Relay",
    "create_table",
    "create_table_sync",
    "relay",
    "submit",
    "submit_sync",
    "submit_task",
    "submit_task_sync",
]
