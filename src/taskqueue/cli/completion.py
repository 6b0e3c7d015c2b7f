"""`tq completion`, and what the shells ask back: task types, recent ids and other names."""

import contextlib
from typing import Any, Final, Literal

from taskqueue.cli.options import Target
from taskqueue.cli.profiles import read_profiles
from taskqueue.client.sync import SyncClient
from taskqueue.client.task import TaskPage
from taskqueue.core.errors import TaskQueueError
from taskqueue.settings.errors import SettingsError

PATIENCE_SECONDS: Final = 1.0
"""How long somebody who has pressed the tabulator is kept waiting for the broker."""

RECENT_IDS: Final = 30
RECENT_TASKS: Final = 500
"""Tasks whose types are offered."""


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the script that completes commands, options, task types and recent ids.

    bash: source <(tq completion bash), in ~/.bashrc

    zsh:  tq completion zsh > FOLDER/_tq, in a folder of $fpath

    fish: tq completion fish > ~/.config/fish/completions/tq.fish
    """
    from taskqueue.cli.main import build_app

    print(build_app().generate_completion(prog_name="tq", shell=shell))


def task_types(context: Any) -> dict[str, str]:
    """The types of recent tasks."""
    page = _recent(context, RECENT_TASKS)
    return {} if page is None else {task.task_type: "" for task in page.tasks}


def task_ids(context: Any) -> dict[str, str]:
    """The ids of recent tasks, and what they are."""
    page = _recent(context, RECENT_IDS)
    if page is None:
        return {}
    return {task.task_id: f"{task.status} {task.task_type}" for task in page.tasks}


def worker_ids(context: Any) -> dict[str, str]:
    """The ids of the workers, and where they are."""
    with contextlib.suppress(TaskQueueError, SettingsError, OSError), _client(context) as client:
        return {worker.worker_id: worker.host for worker in client.workers()}
    return {}


def key_ids(context: Any) -> dict[str, str]:
    """The ids of the API keys, and what they are called."""
    with contextlib.suppress(TaskQueueError, SettingsError, OSError), _client(context) as client:
        return {key.key_id: key.name for key in client.list_keys()}
    return {}


def profile_names(_context: Any) -> list[str]:
    """The names of the user's profiles."""
    with contextlib.suppress(SettingsError):
        return sorted(read_profiles().profiles)
    return []


def _recent(context: Any, limit: int) -> TaskPage | None:
    with contextlib.suppress(TaskQueueError, SettingsError, OSError), _client(context) as client:
        return client.list_tasks(limit=limit)
    return None


def _client(context: Any) -> SyncClient:
    stated = {name: context[f"--{name}"].raw for name in ("url", "api-key", "profile")}
    return Target(stated["url"], stated["api-key"], stated["profile"]).connect(PATIENCE_SECONDS)
