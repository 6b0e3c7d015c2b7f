"""Entry point of `tq`: the list of commands, and how what goes wrong is told.

The modules behind the commands are imported only when one of theirs is called.
"""

import sys
from importlib.metadata import version
from typing import Any, Final

USAGE: Final = 2
INTERRUPTED: Final = 130

EXIT_CODES: Final = {
    "TASK_NOT_FOUND": 5,
    "KEY_NOT_FOUND": 5,
    "WORKER_NOT_FOUND": 5,
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
    "demo": ("taskqueue.cli.dev:demo", "Try it: a broker and a worker that leave nothing behind."),
    "serve": ("taskqueue.cli.broker:serve", "Run a broker."),
    "worker": ("taskqueue.cli.worker:worker", "Run the handlers of an app."),
    "submit": ("taskqueue.cli.tasks:submit", "Submit a task."),
    "status": ("taskqueue.cli.tasks:status", "Show how a task stands."),
    "result": ("taskqueue.cli.tasks:result", "Print a task's result."),
    "wait": ("taskqueue.cli.tasks:wait", "Wait until tasks have ended."),
    "list": ("taskqueue.cli.tasks:list_tasks", "List tasks, newest first."),
    "cancel": ("taskqueue.cli.tasks:cancel", "Cancel tasks."),
    "retry": ("taskqueue.cli.tasks:retry", "Put dead or cancelled tasks back in the queue."),
    "change": ("taskqueue.cli.tasks:change", "Give waiting tasks another priority or time."),
    "purge": ("taskqueue.cli.tasks:purge", "Delete tasks that have ended."),
    "stats": ("taskqueue.cli.figures:stats", "Show the queue in figures."),
    "queue-depth": ("taskqueue.cli.figures:queue_depth", "Show how many wait, by priority."),
    "workers": ("taskqueue.cli.crew:workers", "List workers, or tell some what to do."),
    "logs": ("taskqueue.cli.crew:logs", "Print what a task's attempts have logged."),
    "cluster": ("taskqueue.cli.cluster:cluster", "Show the brokers and the database under them."),
    "audit": ("taskqueue.cli.keys:audit", "List what operators did."),
    "doctor": ("taskqueue.cli.doctor:doctor", "Check what may be amiss, and say what to do."),
    "bench": ("taskqueue.cli.bench:bench", "Measure this broker from this machine."),
    "top": ("taskqueue.cli.top:top", "Watch the queue, live."),
    "tail": ("taskqueue.cli.tail:tail", "Print each change of tasks as it happens."),
    "migrate": ("taskqueue.cli.migrate:migrate", "Bring the database to this release's schema."),
    "move": ("taskqueue.cli.move:move", "Move an embedded broker's tasks to a database."),
    "backup": ("taskqueue.cli.backup:backup", "Copy an embedded broker's tasks to a file."),
    "restore": ("taskqueue.cli.backup:restore", "Put such a copy into an empty data folder."),
    "errors": ("taskqueue.cli.errors:errors", "Explain the code of an error."),
    "completion": ("taskqueue.cli.completion:completion", "Let a shell complete what is typed."),
    "open": ("taskqueue.cli.browse:open_page", "Open the broker's page in a browser."),
}
"""Where each command is written, and what it does."""

GROUPS: Final = {
    "config": (
        "Settings: what holds, and where it comes from.",
        {"show": "taskqueue.cli.config:show", "validate": "taskqueue.cli.config:validate"},
    ),
    "dlq": (
        "Dead tasks, by what they failed of.",
        {
            "list": "taskqueue.cli.dlq:list_groups",
            "show": "taskqueue.cli.dlq:show",
            "retry": "taskqueue.cli.dlq:retry",
            "delete": "taskqueue.cli.dlq:delete",
        },
    ),
    "profile": (
        "Brokers' addresses and keys, kept by name.",
        {
            "list": "taskqueue.cli.profile:list_all",
            "show": "taskqueue.cli.profile:show",
            "use": "taskqueue.cli.profile:use",
            "set": "taskqueue.cli.profile:set_values",
            "delete": "taskqueue.cli.profile:delete",
        },
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
        return _run(arguments, debug)
    except KeyboardInterrupt:
        if debug:
            raise
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads: not even a complaint
        return 1


def _run(arguments: list[str], debug: bool) -> int:
    try:
        from cyclopts import CycloptsError
    except ModuleNotFoundError:
        return _complain("the command line needs more: pip install 'taskqueue[server]'", 2)

    from taskqueue.core.errors import TaskQueueError
    from taskqueue.settings.errors import SettingsError

    try:
        app = build_app(next(iter(arguments), ""))
        app(arguments, exit_on_error=False, print_error=False)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    except BrokenPipeError:
        raise
    except CycloptsError as error:
        if debug:
            raise
        command = " ".join(error.command_chain or ())
        words = " ".join(word for word in ("tq", command, "--help") if word)
        return _complain(f"{_said_by(error).rstrip('.')}; see {words}", USAGE)
    except (TaskQueueError, SettingsError, OSError) as error:
        if debug:
            raise
        return _complain_of(error)
    return 0


def build_app(asked: str = "") -> Any:
    """The commands, none of them imported yet; the one that is asked for is told of in full."""
    from cyclopts import App

    app = App(
        name="tq",
        help="taskqueue: a durable task queue. Exit codes: 0 ok, 1 error, 2 usage or settings, "
        "3 the task failed, 4 key or permission, 5 not found, 6 timed out waiting, "
        "7 no broker answers, 130 interrupted.",
        version=version("taskqueue"),
        help_format="plaintext",
        result_action="return_value",
    )
    for name, (place, summary) in COMMANDS.items():
        app.command(place, name=name, **({} if name == asked else {"help": summary}))
    for name, (summary, commands) in GROUPS.items():
        group = App(name=name, help=summary)
        for word, place in commands.items():
            group.command(place, name=word)
        app.command(group)
    return app


def _complain_of(error: Exception) -> int:
    from taskqueue.cli.errors import next_step
    from taskqueue.core.errors import StorageRefused, TaskQueueError

    if not isinstance(error, TaskQueueError) or isinstance(error, StorageRefused):
        return _complain(str(error), USAGE)
    # A remote traceback may follow the first line; `tq status` shows it.
    line = f"{error.code}: {(str(error).splitlines() or [''])[0]}"
    step = next_step(error)
    return _complain(f"{line}; {step}" if step else line, EXIT_CODES.get(error.code, 1))


def _said_by(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.removeprefix(f"{type(error).__name__} ")


def _complain(text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"tq: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
