"""`manage.py taskqueue_worker`: runs the tasks that the project enqueues."""

import argparse
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from taskqueue.core.errors import InvalidRequest
from taskqueue.integrations.django.backend import TaskQueueBackend
from taskqueue.integrations.django.framework import task_backends
from taskqueue.worker.entry import run_worker
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings


class Command(BaseCommand):
    """Runs a worker until it is told to stop."""

    help = "Runs the tasks that this project enqueues, until told to stop."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--backend", default="default", help="which one of TASKS")
        parser.add_argument(
            "--queue", action="append", default=[], help="only this one; several times"
        )
        parser.add_argument("--concurrency", type=int, default=10, help="tasks at once, 1 to 500")
        parser.add_argument(
            "--shutdown", type=float, default=60.0, help="seconds to finish when told to stop"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the worker. Raises CommandError for what cannot be."""
        del args
        settings = WorkerSettings(
            concurrency=options["concurrency"], shutdown_seconds=options["shutdown"]
        )
        try:
            backend: object = task_backends[options["backend"]]
            if not isinstance(backend, TaskQueueBackend):
                raise CommandError(f"TASKS[{options['backend']!r}] is not a TaskQueueBackend")
            runner = backend.prepare_worker(options["queue"])

            def greet(worker: Worker) -> None:
                runner.worker_id = worker.worker_id
                self.stderr.write(f"worker {worker.worker_id} started")

            run_worker(backend.app, settings=settings, on_start=greet)
        except (InvalidRequest, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error
