"""Options that several commands have."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from taskqueue.cli.output import Form
from taskqueue.cli.profiles import Chosen, choose
from taskqueue.client.sync import SyncClient

CALL_SECONDS: Final = 10.0
"""How long one call of a command may take."""

WATCH_SECONDS: Final = 2.0

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]

Url = Annotated[
    str | None, Parameter(name="--url", help="broker: host:port, several with commas, else TQ_URL")
]
ApiKey = Annotated[str | None, Parameter(name="--api-key", help="key, else TQ_API_KEY")]
Yes = Annotated[bool, Parameter(negative="", help="do not ask")]
DryRun = Annotated[
    bool, Parameter(negative="", help="say how many it would be, and change nothing")
]


AS_IT_IS: Final = Parameter(name_transform=str.lower)
"""Lets words of the queue, such as `dead_letter`, be written on the command line as everywhere."""


@Parameter(name="*")
@dataclass(frozen=True)
class Target:
    """The broker that a command talks to."""

    url: Url = None
    api_key: ApiKey = None
    profile: Annotated[
        str | None, Parameter(help="profile with url and key (tq profile list), else TQ_PROFILE")
    ] = None

    def chosen(self) -> Chosen:
        """What flags, the environment and profiles come to. Raises SettingsError."""
        return choose(self.url, self.api_key, self.profile)

    def connect(self, seconds: float = CALL_SECONDS) -> SyncClient:
        """A client as commands use it: one that gives up soon."""
        chosen = self.chosen()
        return SyncClient(chosen.url, api_key=chosen.api_key, timeout=seconds)


@Parameter(name="*")
@dataclass(frozen=True)
class LiveForm(Form):
    """How a command is to print what it has found, and whether to do so again and again."""

    watch: Annotated[
        float | bool,
        Parameter(negative="", help="again every 2 seconds, or as many as said, until Ctrl-C"),
    ] = False

    @property
    def seconds(self) -> float | None:
        """The pause before it is printed again; None for once."""
        if self.watch is False:
            return None
        return WATCH_SECONDS if self.watch is True else float(self.watch)


HERE: Final = Target()
ONCE: Final = LiveForm()
