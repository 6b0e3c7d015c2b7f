"""What can be done to a data folder while no broker uses it: let somebody in who lost every key."""

from collections.abc import Sequence
from pathlib import Path

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.broker.metrics import Metrics
from taskqueue.core.clock import SystemClock
from taskqueue.core.keys import Permission
from taskqueue.storage.engines import open_storage
from taskqueue.wire import administration


async def create_key(
    folder: Path, name: str, permissions: Sequence[Permission]
) -> administration.NewKeyReply:
    """Make an API key in a data folder. Raises InvalidRequest, StorageRefused."""
    storage = open_storage(folder)
    await storage.open()
    try:
        broker = Broker(storage, SystemClock(), BrokerSettings(), Metrics())
        await broker.open()
        request = administration.CreateKeyRequest(name=name, permissions=list(permissions))
        made = await broker.keys.create(request, Caller("data folder"))
        await broker.close()
        return administration.new_key_reply(made)
    finally:
        await storage.close()
