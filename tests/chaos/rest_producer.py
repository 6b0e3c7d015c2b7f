"""Submits over REST, by hand: `python -m tests.chaos.rest_producer FOLDER ADDRESS SEED`.

Repeats what stayed unknown under the same id, now and then what was acknowledged, and sends
other tasks under ids that are taken. Each request is a line of its own.
"""

import base64
import http.client
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from taskqueue.core.ids import new_task_id
from tests.chaos.history import Args, History, Outcome, digest_of


class Producer:
    """One connection's worth of requests."""

    def __init__(self, folder: Path, address: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self._history = History(folder, "rest")
        self._connection = http.client.HTTPConnection(address, timeout=5)

    def submit(self, task_id: str, payload: bytes, delay: float) -> Outcome:
        """Send a submit once."""
        args = Args(task_id=task_id, payload=digest_of(payload), delay=delay)
        body: dict[str, Any] = {"task_type": "chaos", "max_retries": 1_000, "task_id": task_id}
        body["payload"] = base64.b64encode(payload).decode()
        if delay:
            body["delay_seconds"] = delay
        call = self._history.begin("submit", args)
        outcome, answer = self._ask("POST", "/api/v1/tasks", json.dumps(body))
        call.ended(outcome, answer)
        return outcome

    def cancel(self, task_id: str) -> None:
        """Send a cancellation once."""
        call = self._history.begin("cancel", Args(task_id=task_id))
        call.ended(*self._ask("DELETE", f"/api/v1/tasks/{task_id}", ""))

    def _ask(self, method: str, path: str, body: str) -> tuple[Outcome, str]:
        try:
            self._connection.connect()
        except OSError as error:
            return "fail", f"nothing was sent: {error}"
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            fields = json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return "unknown", str(error)
        finally:
            self._connection.close()
        if answer.status < 300:
            return "ok", fields.get("task_id", "")
        # A 503 does not say in its code whether the outcome is unknown.
        outcome: Outcome = "fail" if answer.status < 500 else "unknown"
        return outcome, f"{fields['code']} {fields['error']}"


def produce_one(producer: Producer) -> None:
    """Submit a task until that is answered, then perhaps do something more with it."""
    chance = producer.chance
    task_id, payload = new_task_id(), chance.randbytes(chance.choice([0, 50, 2_000]))
    delay = chance.choice([0.0, 0.0, 0.0, 0.25])
    while producer.submit(task_id, payload, delay) != "ok":
        if chance.random() < 0.1:
            return
        time.sleep(0.05)
    match chance.randrange(20):
        case 0:
            producer.submit(task_id, payload, delay)
        case 1:
            producer.submit(task_id, payload + b"!", delay)
        case 2:
            producer.cancel(task_id)


def main(folder: Path, address: str, seed: int) -> None:
    """Submit for ever."""
    producer = Producer(folder, address, seed)
    while True:
        produce_one(producer)
        time.sleep(producer.chance.uniform(0, 0.04))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
