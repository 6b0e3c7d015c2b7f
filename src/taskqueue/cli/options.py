"""Options that several commands have."""

from typing import Annotated, Literal

from cyclopts import Parameter

from taskqueue.cli.output import Format

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]

Url = Annotated[
    str | None, Parameter(name="--url", help="broker: host:port, several with commas, else TQ_URL")
]
ApiKey = Annotated[str | None, Parameter(name="--api-key", help="key, else TQ_API_KEY")]
Output = Annotated[Format | None, Parameter(name=["--output", "-o"], help="form of the output")]
