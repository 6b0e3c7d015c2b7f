"""The guides to the integrations do what they say."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
import pytest

from taskqueue.testing import LocalBroker

GUIDES = Path(__file__).parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Place:
    """A folder with the files of a guide, beside a broker."""

    def __init__(self, guide: str, folder: Path, broker: LocalBroker) -> None:
        self.folder = folder
        self._env = os.environ | {"TQ_URL": broker.url, "PYTHONUNBUFFERED": "1"}
        found = BLOCK.findall((GUIDES / guide).read_text())
        self.commands = [text.strip() for language, text in found if language == "sh"]
        for language, text in found:
            if language == "python":
                self.write(text.split()[1], text.replace("127.0.0.1:6379", broker.url))

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def run(self, *words: str) -> str:
        """What a Python program prints; it must not fail."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def working(self, *words: str) -> Iterator[Path]:
        """A worker for the length of a block; the file with what it prints."""
        printed = self.folder / "worker.log"
        with printed.open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, env=self._env, stdout=log, stderr=log
            )
        try:
            yield printed
        finally:
            worker.terminate()
            assert worker.wait(30) == 0, printed.read_text()


def worker_of(commands: str) -> list[str]:
    worker, _, _ = commands.partition(" &\n")
    return ["-m", "taskqueue.cli.main", *worker.split()[1:]]


def spans_in(text: str) -> list[dict[str, Any]]:
    """The spans in what the console's exporter prints, with log lines between them."""
    decode = json.JSONDecoder().raw_decode
    found = [decode(text, start.start())[0] for start in re.finditer(r"^\{", text, re.MULTILINE)]
    return [one for one in found if "context" in one]


def test_opentelemetry(broker: LocalBroker, tmp_path: Path) -> None:
    place = Place("trace-with-opentelemetry.md", tmp_path, broker)
    with place.working(*worker_of(place.commands[1])) as printed:
        said = place.run("traced.py")
        [task_id] = re.findall(r"^[0-9a-f-]{36}$", said, re.MULTILINE)
        broker.client.wait_for_result(task_id)
    spans = spans_in(said) + spans_in(printed.read_text())
    assert [span["name"] for span in spans] == [
        "send send_email",
        "sign up",
        "process send_email",
    ]
    assert len({span["context"]["trace_id"] for span in spans}) == 1


def test_sentry(broker: LocalBroker, tmp_path: Path) -> None:
    place = Place("report-to-sentry.md", tmp_path, broker)
    # It would import, for seconds, every framework that the tests have.
    program = (tmp_path / "reported.py").read_text()
    place.write("reported.py", program.replace("(dsn=", "(auto_enabling_integrations=False, dsn="))
    with place.working(*worker_of(place.commands[1])):
        status = broker.client.wait_for_end(place.run("reported.py").strip())
    assert status.error == "RuntimeError: the bank does not answer"
    assert "sentry-trace" in status.metadata


def test_django(broker: LocalBroker, tmp_path: Path) -> None:
    place = Place("use-django.md", tmp_path, broker)
    settings = (tmp_path / "settings.py").read_text()
    more = 'SECRET_KEY = "secret"\nDATABASES = {"default": '
    more += '{"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}\n'
    if django.VERSION < (6, 0):
        more += 'INSTALLED_APPS.append("django_tasks")\n'
        tasks = (tmp_path / "shop" / "tasks.py").read_text()
        place.write("shop/tasks.py", tasks.replace("django.tasks", "django_tasks"))
    place.write("settings.py", settings + more)
    start = 'import os\nos.environ["DJANGO_SETTINGS_MODULE"] = "settings"\n'
    place.write(
        "manage.py",
        f"{start}import sys\nfrom django.core.management import execute_from_command_line\n"
        "execute_from_command_line(sys.argv)\n",
    )
    code = f"{start}import django\ndjango.setup()\nfrom shop.orders import place\nprint(place(7))"
    [_install, worker] = place.commands
    with place.working(*worker.split()[1:]):
        result = broker.client.wait_for_result(place.run("-c", code).strip())
    assert json.loads(result)["value"] == "receipt 7 sent"
