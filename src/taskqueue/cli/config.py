"""`tq config`: what settings hold, and where they come from."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from taskqueue.cli.options import Output
from taskqueue.cli.output import print_rows
from taskqueue.settings.sources import SECRETS, load_settings


def show(
    *,
    origin: Annotated[bool, Parameter(help="also where each value comes from")] = False,
    config: Annotated[Path | None, Parameter(help="settings file, instead of ./tq.toml")] = None,
    output: Output = None,
) -> None:
    """Show every setting of the broker and its value."""
    loaded = load_settings({}, os.environ, config)
    rows = [
        {"setting": path, "value": _shown(path, value.value), "origin": value.origin}
        for path, value in sorted(loaded.values.items())
    ]
    print_rows(rows, output, ("setting", "value", "origin") if origin else ("setting", "value"))


def _shown(path: str, value: object) -> object:
    return "(hidden)" if path in SECRETS and value is not None else value
