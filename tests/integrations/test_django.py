"""The Django backend in a small real project: SQLite, a worker process, a broker."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from taskqueue.testing import LocalBroker

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""

SETTINGS = """
import django
SECRET_KEY = "secret"
USE_TZ = True
INSTALLED_APPS = ["taskqueue.integrations.django", "shop"]
FRAMEWORK = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
if FRAMEWORK == "django_tasks":
    INSTALLED_APPS.append(FRAMEWORK)
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
BACKEND = "taskqueue.integrations.django.TaskQueueBackend"
TASKS = {
    "default": {
        "BACKEND": BACKEND,
        "QUEUES": ["default", "reports"],
        "OPTIONS": {"RETRIES": 1, "SETUP": "shop.setup.note_submits"},
    },
    "eager": {"BACKEND": BACKEND, "OPTIONS": {"ENQUEUE_ON_COMMIT": False}},
    "other": {"BACKEND": FRAMEWORK + ".backends.dummy.DummyBackend"},
}
"""

MODELS = """
from django.db import models

class Order(models.Model):
    paid = models.BooleanField(default=False)
"""

SETUP = """
submitted = []

def note_submits(app):
    @app.submit_middleware
    async def note(task, call_next):
        submitted.append(task.task_type)
        return await call_next(task)
"""

TASKS = """
try:
    from django.tasks import task
    from django.tasks.signals import task_finished, task_started
except ImportError:
    from django_tasks import task
    from django_tasks.signals import task_finished, task_started
from django.db import connection
from taskqueue import Retry, Snooze
from .models import Order

signals = []
task_started.connect(lambda task_result, **_: signals.append(task_result.status), weak=False)
task_finished.connect(lambda task_result, **_: signals.append(task_result.status), weak=False)

class CardRefused(Exception):
    pass

@task
def pay(order_id):
    Order.objects.filter(id=order_id).update(paid=True)
    return {"paid": order_id}

@task(takes_context=True, priority=50, queue_name="reports")
def tell(context, *args, **kwargs):
    result = context.task_result
    return [context.attempt, result.id, result.task.priority, result.task.queue_name,
            result.args, result.kwargs, len(result.worker_ids[0]) > 8]

@task
async def count():
    return await Order.objects.acount()

@task(takes_context=True)
def refuse(context, delay):
    if context.attempt == 1:
        raise Retry("not yet", delay=delay)
    raise CardRefused("no money")

@task
def seen():
    return signals

@task
def connected():
    return connection.connection is not None
"""

PRELUDE = """
import asyncio, datetime, json, sys, traceback
import django
django.setup()
from django.db import transaction
from django.core.exceptions import ImproperlyConfigured
try:
    from django.tasks import task_backends
    from django.tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
except ImportError:
    from django_tasks import task_backends
    from django_tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
from shop import setup, tasks
from shop.models import Order
from taskqueue.integrations.django import TaskQueueBackend

def ended(result):
    client = task_backends["default"].app.clients.sync()
    client.wait_for_end(result.id, 30)
    result.refresh()
    return result

for line in sys.stdin:
    said = ""
    try:
        exec(json.loads(line), dict(globals()))
    except Exception:
        said = traceback.format_exc() + json.loads(line)
    print(json.dumps(said), flush=True)
"""


class Project:
    """A Django project in a folder, on a broker."""

    def __init__(self, folder: Path, broker: LocalBroker) -> None:
        self.folder = folder
        self.broker = broker
        own = {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
        self._console: subprocess.Popen[str] | None = None
        self.env = own | {"TQ_URL": broker.url, "DJANGO_SETTINGS_MODULE": "settings"}
        (folder / "shop").mkdir()
        (folder / "shop" / "__init__.py").touch()
        for name, text in (
            ("manage.py", MANAGE),
            ("settings.py", SETTINGS),
            ("shop/models.py", MODELS),
            ("shop/setup.py", SETUP),
            ("shop/tasks.py", TASKS),
        ):
            (folder / name).write_text(text)

    def manage(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def check(self, code: str) -> None:
        """Run code with its assertions in the project, in a process that stays for the next."""
        if self._console is None:
            self._console = subprocess.Popen(
                [sys.executable, "-c", PRELUDE],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._console.stdin is not None
        assert self._console.stdout is not None
        print(json.dumps(dedent(code)), file=self._console.stdin, flush=True)
        said = self._console.stdout.readline()
        assert json.loads(said) == "", json.loads(said)

    def close(self) -> None:
        """End the process in which code was checked."""
        if self._console is not None:
            self._console.communicate(timeout=30)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with its tables, and a worker at work."""
    folder = tmp_path_factory.mktemp("project")
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        project = Project(folder, broker)
        made = project.manage("migrate", "--run-syncdb", "-v", "0")
        assert made.returncode == 0, made.stderr
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "manage.py", "taskqueue_worker", "--concurrency", "4"],
                cwd=folder,
                env=project.env,
                stdout=log,
                stderr=log,
            )
        try:
            yield project
        finally:
            project.close()
            worker.terminate()
            assert worker.wait(30) == 0, (folder / "worker.log").read_text()


def test_a_task_is_enqueued_when_its_transaction_commits(project: Project) -> None:
    project.check("""
        before, orders = len(setup.submitted), Order.objects.count()
        try:
            with transaction.atomic():
                lost = tasks.pay.enqueue(Order.objects.create().id)
                raise LookupError
        except LookupError:
            pass
        with transaction.atomic():
            order = Order.objects.create()
            kept = tasks.pay.enqueue(order.id)
            try:
                tasks.pay.get_result(kept.id)
            except TaskResultDoesNotExist:
                pass
            else:
                raise AssertionError("it was enqueued before the commit")
            assert kept.enqueued_at is None
        assert kept.enqueued_at is not None
        assert ended(kept).return_value == {"paid": order.id}
        order.refresh_from_db()
        assert order.paid
        assert Order.objects.count() == orders + 1
        try:
            tasks.pay.get_result(lost.id)
        except TaskResultDoesNotExist:
            pass
        else:
            raise AssertionError("what was rolled back was enqueued")
        assert setup.submitted[before:] == ["django.default"]
    """)


def test_without_on_commit_it_is_enqueued_at_once(project: Project) -> None:
    project.check("""
        with transaction.atomic():
            result = tasks.count.using(backend="eager").enqueue()
            assert ended(result).backend == "eager"
            transaction.set_rollback(True)
        assert result.is_finished
    """)


def test_results_say_what_the_framework_asks_for(project: Project) -> None:
    project.check("""
        result = ended(tasks.tell.enqueue(1, "two", three=[3.5, None]))
        assert result.return_value == [
            1, result.id, 50, "reports", [1, "two"], {"three": [3.5, None]}, True
        ]
        found = tasks.tell.get_result(result.id)
        assert (found.args, found.kwargs) == ([1, "two"], {"three": [3.5, None]})
        assert found.task == tasks.tell
        assert found.status == "SUCCESSFUL" and found.errors == []
        assert len(found.worker_ids) == found.attempts == 1
        assert found.enqueued_at <= found.started_at <= found.finished_at
        assert found.last_attempted_at == found.started_at
        assert found.return_value == asyncio.run(tasks.tell.aget_result(result.id)).return_value
        try:
            tasks.pay.get_result(result.id)
        except TaskResultMismatch:
            pass
        else:
            raise AssertionError("it is the result of another task")
        for unknown in ("none", "00000000-0000-0000-0000-000000000000"):
            try:
                task_backends["default"].get_result(unknown)
            except TaskResultDoesNotExist:
                pass
            else:
                raise AssertionError(unknown)
    """)


def test_coroutines_enqueue_and_are_enqueued(project: Project) -> None:
    project.check("""
        number = Order.objects.count()
        result = asyncio.run(tasks.count.aenqueue())
        assert ended(result).return_value == number
    """)


def test_what_fails_is_tried_again_and_then_failed(project: Project) -> None:
    project.check("""
        result = ended(tasks.refuse.enqueue(0))
        assert result.status == "FAILED"
        first, second = result.errors
        assert first.exception_class_path == "taskqueue.worker.outcomes.Retry"
        assert second.exception_class is tasks.CardRefused
        assert "no money" in second.traceback
        assert result.attempts == 2 and len(set(result.worker_ids)) == 1
        waiting = tasks.refuse.enqueue(3600)
        client = task_backends["default"].app.clients.sync()
        while not waiting.errors:
            waiting.refresh()
        assert waiting.status == "READY"
        client.cancel(waiting.id)
        waiting.refresh()
        assert waiting.status == "FAILED" and waiting.is_finished
    """)


def test_run_after_is_kept(project: Project) -> None:
    project.check("""
        moment = datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc)
        result = tasks.count.using(run_after=moment).enqueue()
        found = tasks.count.get_result(result.id)
        assert found.status == "READY" and found.task.run_after == moment
        task_backends["default"].app.clients.sync().cancel(result.id)
    """)


def test_priorities_are_those_of_the_framework(project: Project) -> None:
    project.check("""
        from taskqueue.integrations.django.calls import broker_priority, django_priority
        numbers = [broker_priority(one) for one in range(-100, 101)]
        assert (numbers[0], numbers[-1]) == (0, 255)
        assert sorted(set(numbers)) == numbers
        assert [django_priority(one) for one in numbers] == list(range(-100, 101))
    """)


def test_signals_are_sent_and_connections_closed(project: Project) -> None:
    project.check("""
        ended(tasks.refuse.enqueue(0))
        assert ended(tasks.seen.enqueue()).return_value[-3:] == ["RUNNING", "FAILED", "RUNNING"]
        ended(tasks.pay.enqueue(0))  # in the same thread: nothing else is running
        assert ended(tasks.connected.enqueue()).return_value is False
    """)


def test_what_cannot_be_is_refused_before_the_commit(project: Project) -> None:
    project.check("""
        for wrong, told in (
            ({"OPTIONS": {"RETRYS": 1}}, "no option RETRYS"),
            ({"OPTIONS": {"TIMEOUT": 0}}, "timeout"),
            ({"QUEUES": ["no spaces"]}, "task_type"),
        ):
            try:
                TaskQueueBackend("wrong", wrong)
            except ImproperlyConfigured as error:
                assert told in str(error), error
            else:
                raise AssertionError(told)
        with transaction.atomic():
            try:
                tasks.pay.enqueue("x" * 11_000_000)
            except Exception as error:
                assert "at most" in str(error), error
            else:
                raise AssertionError("it is too large")
        long = tasks.tell.enqueue("x" * 5_000)
        assert len(ended(long).return_value[4][0]) == 5_000
        assert tasks.tell.get_result(long.id).args == []  # too long to be told
    """)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--backend", "none"), "none"),
        (("--backend", "other"), "is not a TaskQueueBackend"),
        (("--concurrency", "0"), "concurrency must be between 1 and 500"),
    ],
)
def test_a_worker_that_cannot_be_says_why(
    project: Project, words: tuple[str, ...], told: str
) -> None:
    done = project.manage("taskqueue_worker", *words)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_another_kind_of_task_fails_where_there_is_none(project: Project) -> None:
    project.check("""
        client = task_backends["default"].app.clients.sync()
        from taskqueue import Task
        path = b'{"task":"os.getcwd","queue":"default","priority":0,' \\
            b'"enqueued_at":"2024-01-01T00:00:00Z","call":{}}'
        task_id = client.submit_task(Task("django.default", path))
        status = client.wait_for_end(task_id, 30)
        assert status.status == "dead_letter" and status.retry_count <= 1
        assert "os.getcwd is not a task" in status.error
    """)
