"""Tags and metadata as they are written on the command line."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from taskqueue.core.errors import InvalidRequest


@Parameter(name="*")
@dataclass(frozen=True)
class Labels:
    """What tasks are found by."""

    tag: Annotated[
        list[str] | None, Parameter(negative="", help="name to find it by; several times")
    ] = None
    meta: Annotated[
        list[str] | None, Parameter(negative="", help="name=value to find it by; several times")
    ] = None

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that were given."""
        return tuple(self.tag or ())

    @property
    def metadata(self) -> dict[str, str]:
        """The names and their values. Raises InvalidRequest for one without a value."""
        pairs = [(text, *text.partition("=")) for text in self.meta or ()]
        for text, _, sign, _value in pairs:
            if not sign:
                raise InvalidRequest(
                    f"--meta: {text!r} has no value; write name=value", field="meta"
                )
        return {name: value for _, name, _, value in pairs}


NO_LABELS = Labels()
