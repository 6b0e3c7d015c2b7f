"""Entry point of `tq`: the list of commands, and how what goes wrong is told.

The modules behind the commands are imported only when one of theirs is called.
"""

import sys
from importlib.metadata import version
from typing import Any, Final

EXIT_CODES: Final = {
    "TASK_NOT_FOUND": 5,
    "KEY_NOT_FOUND": 5,
    "TASK_FAILED": 3,
    "WAIT_TIMEOUT": 6,
    "BROKER_UNAVAILABLE": 7,
    "AUTHENTICATION_FAILED": 4,
    "PERMISSION_DENIED": 4,
    "INVALID_REQUEST": 2,
    "PAYLOAD_TOO_LARGE": 2,
}
"""Exit codes by error code; any other error of the broker is 1."""

COMMANDS: Final = {
    "dev": ("taskqueue.cli.dev:dev", "Broker and worker in one command, with reload."),
    "serve": ("taskqueue.cli.broker:serve", "Run a broker."),
    "worker": ("taskqueue.cli.worker:worker", "Run the handlers of an app."),
    "submit": ("taskqueue.cli.tasks:submit", "Submit a task."),
    "status": ("taskqueue.cli.tasks:status", "Show how a task stands."),
    "result": ("taskqueue.cli.tasks:result", "Print a task's result."),
    "list": ("taskqueue.cli.tasks:list_tasks", "List tasks, newest first."),
    "cancel": ("taskqueue.cli.tasks:cancel", "Cancel tasks."),
    "retry": ("taskqueue.cli.tasks:retry", "Put dead or cancelled tasks back in the queue."),
    "stats": ("taskqueue.cli.tasks:stats", "Show the queue in figures."),
    "cluster": ("taskqueue.cli.cluster:cluster", "Show the brokers and the database under them."),
    "audit": ("taskqueue.cli.keys:audit", "List what operators did."),
    "migrate": ("taskqueue.cli.migrate:migrate", "Bring the database to this release's schema."),
    "move": ("taskqueue.cli.move:move", "Move an embedded broker's tasks to a database."),
}
"""Where each command is written, and what it does."""

GROUPS: Final = {
    "config": (
        "Settings: what holds, and where it comes from.",
        {"show": "taskqueue.cli.config:show"},
    ),
    "keys": (
        "API keys: who is let in, and what they may do.",
        {
            "create": "taskqueue.cli.keys:create",
            "list": "taskqueue.cli.keys:list_all",
            "rotate": "taskqueue.cli.keys:rotate",
            "revoke": "taskqueue.cli.keys:revoke",
        },
    ),
}
"""Commands of two words: what the first one is about, and where those behind it are written."""


def main() -> None:
    """Run `tq` with the arguments of this process."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        print(version("taskqueue"))
        return
    debug = "--debug" in arguments
    sys.exit(run([word for word in arguments if word != "--debug"], debug=debug))


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command and return its exit code; `debug` lets tracebacks through."""
    try:
        from cyclopts import CycloptsError
    except ModuleNotFoundError:
        return _complain("the command line needs more: pip install 'taskqueue[server]'", 2)

    from taskqueue.core.errors import StorageRefused, TaskQueueError
    from taskqueue.settings.errors import SettingsError

    try:
        _app()(arguments, exit_on_error=False, print_error=False)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads: not even a complaint
        return 1
    except (TaskQueueError, CycloptsError, SettingsError, OSError) as error:
        if debug:
            raise
        code = getattr(error, "code", None)
        if code is None or isinstance(error, StorageRefused):
            return _complain(str(error), 2)
        # A remote traceback may follow the first line; `tq status` shows it.
        return _complain(f"{code}: {str(error).splitlines()[0]}", EXIT_CODES.get(code, 1))
    return 0


def _app() -> Any:
    from cyclopts import App

    app = App(
        name="tq",
        help="taskqueue: a durable task queue. Exit codes: 0 ok, 1 error, 2 usage or settings, "
        "3 the task failed, 4 key or permission, 5 not found, 6 timed out waiting, "
        "7 no broker answers.",
        version=version("taskqueue"),
        result_action="return_value",
    )
    for name, (place, summary) in COMMANDS.items():
        app.command(place, name=name, help=summary)
    for name, (summary, commands) in GROUPS.items():
        group = App(name=name, help=summary)
        for word, place in commands.items():
            group.command(place, name=word)
        app.command(group)
    return app


def _complain(text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"tq: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
