"""What lies in deploy/: valid by the schemas, and of one piece with itself and what is run here."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from compose_spec import PyOptions

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = ("1.33", "1.37")
BROKERS, NODES, KEEPERS = ("b1", "b2", "b3"), ("n1", "n2", "n3"), ("e1", "e2", "e3")


def documents() -> list[dict[str, Any]]:
    """Every object of the manifests."""
    return [
        document
        for manifest in MANIFESTS
        if manifest.name != "kustomization.yaml"
        for document in yaml.safe_load_all(manifest.read_text())
    ]


def the(kind: str, name: str) -> dict[str, Any]:
    """One object of the manifests."""
    [found] = [
        document
        for document in documents()
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
    ]
    return found


def the_environment(kind: str, name: str) -> dict[str, str | None]:
    """What the one container of a workload is told; None for what comes from elsewhere."""
    [container] = the(kind, name)["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value") for variable in container["env"]}


@pytest.fixture
def services() -> dict[str, Any]:
    """The services of the compose file."""
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return loaded


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(version: str) -> None:
    assert documents()
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_compose_file_keeps_to_the_specification() -> None:
    compose = PyOptions(apply_merge=True).from_yaml(COMPOSE.read_text())
    compose.validate()
    assert sorted(compose.service_names()) == sorted((*BROKERS, *NODES, *KEEPERS))


def test_kustomize_names_every_manifest() -> None:
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    there = {manifest.name for manifest in MANIFESTS} - {"kustomization.yaml"}
    assert set(listed["resources"]) == there


def test_every_broker_knows_every_node(services: dict[str, Any]) -> None:
    for name in BROKERS:
        engine = services[name]["environment"]["TQ_ENGINE"]
        assert re.findall(r"(\w+):5432", engine) == list(NODES)
        assert services[name]["environment"]["TQ_STORAGE_ADVERTISE"] == f"{name}:6379"
    workload = the("StatefulSet", "postgres")["spec"]
    pods = [f"postgres-{number}.postgres" for number in range(workload["replicas"])]
    engine = the_environment("Deployment", "taskqueue")["TQ_ENGINE"] or ""
    assert re.findall(r"([\w.-]+):5432", engine) == pods


def test_every_node_knows_every_keeper(services: dict[str, Any]) -> None:
    for name in NODES:
        environment = services[name]["environment"]
        assert environment["PATRONI_ETCD3_HOSTS"] == ",".join(f"{one}:2379" for one in KEEPERS)
        assert environment["PATRONI_NAME"] == name
        assert environment["PATRONI_POSTGRESQL_CONNECT_ADDRESS"] == f"{name}:5432"
        assert environment["PATRONI_RESTAPI_CONNECT_ADDRESS"] == f"{name}:8008"
    replicas = the("StatefulSet", "etcd")["spec"]["replicas"]
    hosts = the_environment("StatefulSet", "postgres")["PATRONI_ETCD3_HOSTS"] or ""
    assert hosts.split(",") == [f"etcd-{number}.etcd:2379" for number in range(replicas)]
    initial = the_environment("StatefulSet", "etcd")["ETCD_INITIAL_CLUSTER"] or ""
    assert initial.split(",") == [
        f"etcd-{number}=http://etcd-{number}.etcd:2380" for number in range(replicas)
    ]


def test_images_are_built_from_what_is_here(services: dict[str, Any]) -> None:
    built = {}
    for service in services.values():
        place = COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]
        assert place.is_file()
        built[service["image"]] = place
    used = {
        container["image"]
        for document in documents()
        if document["kind"] in ("StatefulSet", "Deployment")
        for container in document["spec"]["template"]["spec"]["containers"]
    }
    assert used == set(built)


@pytest.mark.parametrize("dockerfile", sorted(DEPLOY.glob("*Dockerfile")), ids=lambda one: one.name)
def test_what_images_copy_is_there_and_they_do_not_run_as_root(dockerfile: Path) -> None:
    lines = dockerfile.read_text().splitlines()
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            *sources, _ = line.split()[1:]
            assert all((DEPLOY.parent / source).exists() for source in sources), line
    assert [line for line in lines if line.startswith("USER")][-1] != "USER root"


def test_no_password_is_written_down(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or re.fullmatch(r"\$\{\w+:\?\}", value)
    for kind, name in (("StatefulSet", "postgres"), ("Deployment", "taskqueue")):
        environment = the_environment(kind, name)
        assert all(value is None for word, value in environment.items() if "PASSWORD" in word)


def test_selectors_find_the_pods() -> None:
    for name, kind in (("etcd", "StatefulSet"), ("postgres", "StatefulSet")):
        assert the(kind, name)["spec"]["serviceName"] == name
    for document in documents():
        selector = document.get("spec", {}).get("selector")
        if selector:
            wanted = selector.get("matchLabels", selector)
            kind = "Deployment" if document["metadata"]["name"] == "taskqueue" else "StatefulSet"
            workload = the(kind, document["metadata"]["name"])
            assert workload["spec"]["template"]["metadata"]["labels"] == wanted


def test_patroni_is_told_what_promises_rest_on() -> None:
    rules = yaml.safe_load((DEPLOY / "patroni.yml").read_text())["bootstrap"]["dcs"]
    assert rules["loop_wait"] + 2 * rules["retry_timeout"] <= rules["ttl"]
    assert rules["primary_start_timeout"] == 0
    assert rules["synchronous_mode"] is True
    assert rules["synchronous_mode_strict"] is True
