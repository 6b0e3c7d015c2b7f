"""Where an app can be imported from, so that another process finds the same handlers."""

import importlib
import multiprocessing.spawn
import os
import sys
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from taskqueue.core.errors import InvalidRequest
from taskqueue.worker.app import App

MAIN: Final = "__main__"


class AppPlace(Struct, frozen=True):
    """`module` and `name` of an app, and what has to be imported for it to have its `handlers`.

    `main` is what multiprocessing's spawn method needs to import a script again.
    """

    module: str
    name: str
    modules: list[str]
    handlers: list[str]
    search_path: list[str]
    main: dict[str, str]

    def app(self) -> App:
        """Import the app here. Raises InvalidRequest if it lacks a handler."""
        if self.main:
            Importing.is_under_way = True
            multiprocessing.spawn.prepare(self.main)
            Importing.is_under_way = False
        app: Any = importlib.import_module(self.module)
        for part in self.name.split("."):
            app = getattr(app, part)
        for module in self.modules:
            importlib.import_module(module)
        missing = sorted(set(self.handlers) - set(app.handlers))
        if missing:
            raise InvalidRequest(
                f"{self.module}:{self.name}, imported anew, has no handler {missing[0]!r}; "
                "declare it when its module is imported"
            )
        found: App = app
        return found


class Importing:
    """Whether this process imports a script only to find its handlers."""

    is_under_way = False


def refuse_worker_while_importing() -> None:
    """Raises InvalidRequest in a process that only wants a script's handlers."""
    if Importing.is_under_way:
        raise InvalidRequest(
            "handlers in processes import their script again: start its worker under "
            "`if __name__ == '__main__':`"
        )


def place_of(app: App) -> AppPlace:
    """Where an app with handlers in processes can be found again.

    Raises InvalidRequest where it cannot, as in a function or in an interactive session.
    """
    handlers = [one for one in app.handlers.values() if one.manner.isolation is not None]
    modules = list(dict.fromkeys(one.function.__module__ for one in handlers))
    module, name = _path_of(app, modules)
    main = _main() if MAIN in (module, *modules) else {}
    return AppPlace(
        module=module,
        name=name,
        modules=modules,
        handlers=[one.name for one in handlers],
        search_path=[str(Path(entry).absolute()) for entry in sys.path],
        main=main,
    )


def _path_of(app: App, modules: list[str]) -> tuple[str, str]:
    if app.path:
        module, _, name = app.path.partition(":")
        return module, name or "app"
    for module in modules:
        for name, value in vars(sys.modules.get(module, object)).items():
            if value is app:
                return module, name
    raise InvalidRequest(
        "handlers with isolation='process' are imported again in another process, and the app "
        f"is no global variable of {' or '.join(modules)}; declare both in a module"
    )


def _main() -> dict[str, str]:
    known = multiprocessing.spawn.get_preparation_data("taskqueue")
    main = {key: str(known[key]) for key in known if key.startswith("init_main_from_")}
    is_file = all(os.path.exists(path) for path in main.values() if os.sep in path)  # noqa: PTH110
    if not main or not is_file:
        raise InvalidRequest(
            "handlers with isolation='process' are imported again in another process, and this "
            "session cannot be; declare them in a file"
        )
    return main
