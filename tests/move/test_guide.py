"""The guide, typed word by word, with the address of a database that is there."""

import asyncio
import json
import sys
import urllib.request
from pathlib import Path

from tests.house.test_documents import Shell, blocks
from tests.move.filling import Folder
from tests.support.broker import BrokerProcess
from tests.support.ports import free_port


async def test_a_folder_is_moved_as_the_guide_says(
    template: Folder, dsn: str, tmp_path: Path
) -> None:
    old = BrokerProcess(template.copy(tmp_path / "broker-data").path)
    await asyncio.to_thread(old.start)
    await asyncio.to_thread(typed, dsn, tmp_path, old)


def typed(dsn: str, folder: Path, old: BrokerProcess) -> None:
    """The blocks, in their order; the broker is stopped where the guide says so."""
    guide = "docs/how-to/move-to-postgresql.md"
    look, move, serve = (text.strip() for _, text in blocks(guide, "sh"))
    address = "postgresql://taskqueue:PASSWORD@db:5432/taskqueue"
    assert address in look
    http = f"127.0.0.1:{free_port()}"
    shell = Shell(folder, http, f"127.0.0.1:{free_port()}")
    shell._env["TQ_ENGINE"] = dsn
    assert "kept\t" in shell.run(look.replace(address, dsn))
    move = move.replace("tq move", f"{sys.executable} -m taskqueue.cli.main move")
    printed = shell.run(f"{move} & move=$!\nkill {old.pid}\nwait $move")
    assert "status in_progress\t" in printed
    old.stop()
    ports = ("127.0.0.1:8080", "127.0.0.1:9090")
    for port, free in zip(ports, (http, "127.0.0.1:0"), strict=True):
        serve = serve.replace(port, free)
    serve = serve.replace("127.0.0.1:6379", shell._native)
    process = shell.start(sys.executable, "-m", "taskqueue.cli.main", *serve.split()[1:])
    try:
        shell.run(f"until curl -sf http://{http}/api/v1/health; do sleep 0.1; done")
        with urllib.request.urlopen(f"http://{http}/api/v1/health", timeout=10) as answer:
            assert json.load(answer)["pending_tasks"] > 0
    finally:
        process.terminate()
        assert process.wait(30) == 0
