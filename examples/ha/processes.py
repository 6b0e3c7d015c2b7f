"""Processes that run until they are told to end, as an ordinary user where we are root."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

NOBODY: Final = 65_534
"""PostgreSQL refuses to run as root; there everything of the database runs as this user."""

TOOLS: Final = Path(__file__).parents[2] / ".tools" / "bin"
PROBE: Final = "import subprocess, sys, patroni; subprocess.run([sys.executable, '-V'], check=True)"
"""What Patroni needs: its modules, and that it may start itself anew."""

PATIENCE: Final = 15.0
"""Seconds a process gets to end by itself."""


class Process:
    """A program; what it prints goes to the end of a file."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        env: Mapping[str, str],
        *,
        is_of_database: bool = False,
    ) -> None:
        user = as_database_user() if is_of_database else ()
        self._command = [*user, *map(str, command)]
        self._log = log
        self._env = {**os.environ, **env}
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._running is not None and self._running.poll() is None

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError if it was not started."""
        if self._running is None:
            raise RuntimeError(f"{self._command[0]} does not run")
        return self._running.pid

    def start(self) -> None:
        """Start it, out of reach of the terminal's Ctrl-C."""
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(  # noqa: S603
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._log.parent,
                start_new_session=True,
            )

    def end(self) -> None:
        """Ask it to end, and see to it after a while."""
        self.ask_to_end()
        self.wait()

    def ask_to_end(self) -> None:
        """Ask it to end, and do not wait for it."""
        if self._running is not None:
            self._running.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until it has ended; kill it when that takes too long."""
        if self._running is None:
            return
        try:
            self._running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._running = None

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            self._running = None


@cache
def as_database_user() -> tuple[str, ...]:
    """What to put before a command to run it as the database's user. Raises PermissionError."""
    if os.geteuid() != 0:
        return ()
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    # Root's own Python may lie where nobody else can read it.
    reader = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    for prefix in (user, (*user, *reader)):
        command = [*prefix, sys.executable, "-c", PROBE]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:  # noqa: S603
            return prefix
    raise PermissionError(
        f"PostgreSQL must not run as root, and another user cannot run {sys.executable}: "
        "start this as an ordinary user"
    )


def give_to_database_user(path: Path) -> None:
    """Let the database's user, and nobody else, into a folder or file."""
    path.chmod(0o700 if path.is_dir() else 0o600)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def program(name: str) -> Path:
    """Where a program is: on PATH, or fetched to .tools. Raises FileNotFoundError."""
    found = shutil.which(name) or shutil.which(name, path=TOOLS)
    if found is None:
        raise FileNotFoundError(f"{name} is missing; fetch it with scripts/debian_tools.sh .tools")
    return Path(found)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family_of(pid: int) -> list[int]:
    """A process and its children, as far as they live."""
    family = [pid]
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name in brackets, which may hold anything: the state, then the parent.
            _, _, rest = place.read_text().rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        if int(rest.split()[1]) == pid:
            family.append(int(place.parent.name))
    return family


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended, waited for or not."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    return rest.split()[0] not in ("Z", "X")


def kill_all(pids: Sequence[int]) -> None:
    """SIGKILL to each of them, the first one first, and wait until none of them runs."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until("killed processes to be gone", lambda: not any(map(is_running, pids)))


def until(what: str, is_so: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait until something is so; how many seconds that took. Raises TimeoutError."""
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)
    return time.monotonic() - begun
