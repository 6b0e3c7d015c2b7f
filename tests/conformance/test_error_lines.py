"""The reference's error codes that a healthy server never gives, provoked over both doors."""

import base64
from collections.abc import Iterator

import pytest

from tests.conformance.catalogue import proves
from tests.conformance.grpcurl import Refused, grpcurl
from tests.conformance.served import TASKS, Served
from tests.support.broker import a_broker_process

TASK = {"task_type": "t", "payload": ""}
RESULT = b"the result that is to be damaged"


def refusal(served: Served, method: str, data: str) -> Refused:
    """How a call is refused."""
    line = f"grpcurl -plaintext -d '{data}' localhost:9090 taskqueue.TaskQueue/{method}"
    with pytest.raises(Refused) as refused:
        grpcurl(served.grpcurl_words(line))
    return refused.value


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with as many tasks as it may have."""
    folder = tmp_path_factory.mktemp("full")
    settings = folder / "tq.toml"
    settings.write_text("[broker]\nmax_pending = 1\n")
    flags = ("--config", str(settings), "--rate-limit", "0")
    with a_broker_process(folder / "data", *flags) as broker:
        served = Served(broker)
        served.submit()
        yield served


@proves("submit.503", "error.QUEUE_DEPTH_EXCEEDED", "error.format")
def test_a_full_queue_is_503(full: Served) -> None:
    reply = full.ask("POST", TASKS, TASK)
    assert reply.is_error(503, "QUEUE_DEPTH_EXCEEDED")
    assert int(reply.headers["retry-after"]) >= 1


@proves("grpc.error.QUEUE_DEPTH_EXCEEDED")
def test_a_full_queue_is_resource_exhausted(full: Served) -> None:
    refused = refusal(full, "SubmitTask", '{"task_type": "t"}')
    assert (refused.status, refused.code) == ("RESOURCE_EXHAUSTED", "QUEUE_DEPTH_EXCEEDED")


@pytest.fixture(scope="module")
def disabled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose database was taken away."""
    folder = tmp_path_factory.mktemp("disabled") / "data"
    with a_broker_process(folder, "--rate-limit", "0") as broker:
        [database] = folder.glob("*.db")
        gone = database.rename(database.with_suffix(".gone"))
        yield Served(broker)
        gone.rename(database)


@proves("submit.503", "error.BROKER_UNAVAILABLE", "error.format")
def test_a_broker_that_cannot_commit_is_503(disabled: Served) -> None:
    reply = disabled.ask("POST", TASKS, TASK)
    assert reply.is_error(503, "BROKER_UNAVAILABLE")
    assert int(reply.headers["retry-after"]) >= 1


@proves("grpc.error.BROKER_UNAVAILABLE")
def test_a_broker_that_cannot_commit_is_unavailable(disabled: Served) -> None:
    refused = refusal(disabled, "SubmitTask", '{"task_type": "t"}')
    assert (refused.status, refused.code) == ("UNAVAILABLE", "BROKER_UNAVAILABLE")


@proves("health.degraded", "health.response")
def test_a_broker_that_cannot_commit_is_degraded(disabled: Served) -> None:
    assert disabled.ask("POST", TASKS, TASK).status == 503
    health = disabled.ask("GET", "/api/v1/health")
    # The reference names the word only; the 503 is an addition, for those who look at no body.
    assert (health.status, health.json["status"]) == (503, "degraded")
    assert health.json["cluster_healthy"] is False


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A server one of whose results has a wrong byte on the disk, and the task's id."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    with a_broker_process(folder, "--rate-limit", "0") as broker:
        task_id = Served(broker).submit(payload=base64.b64encode(b"whole").decode())
        worker = Served(broker).worker()
        worker.complete(worker.claim(), RESULT)
        worker.close()
    [database] = folder.glob("*.db")
    data = database.read_bytes()
    assert RESULT in data
    database.write_bytes(data.replace(RESULT, RESULT.replace(b"result", b"rezult")))
    with a_broker_process(folder, "--rate-limit", "0") as broker:
        yield Served(broker), task_id


@proves("error.INTERNAL_ERROR", "error.format")
def test_an_unexpected_error_is_500_and_keeps_its_insides(damaged: tuple[Served, str]) -> None:
    served, task_id = damaged
    reply = served.ask("GET", f"{TASKS}/{task_id}")
    assert reply.is_error(500, "INTERNAL_ERROR")
    assert "Traceback" not in reply.json["error"]


@proves("grpc.error.INTERNAL_ERROR")
def test_an_unexpected_error_is_internal(damaged: tuple[Served, str]) -> None:
    served, task_id = damaged
    refused = refusal(served, "GetTaskStatus", f'{{"task_id": "{task_id}"}}')
    assert (refused.status, refused.code) == ("INTERNAL", "INTERNAL_ERROR")
    assert "Traceback" not in refused.details
