"""The files of deploy/, as data."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = DEPLOY / "kubernetes" / "catraca.yaml"
CHART = DEPLOY / "helm" / "catraca"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
UNIT = DEPLOY / "systemd" / "catraca.service"

Objects = Mapping[str, Mapping[str, Any]]


def files() -> list[Path]:
    """Returns all files of deploy/."""
    return [path for path in DEPLOY.rglob("*") if path.is_file() and "secrets" not in path.parts]


def objects_of(text: str) -> Objects:
    """Returns Kubernetes objects by kind."""
    objects = [each for each in yaml.safe_load_all(text) if each is not None]
    by_kind = {each["kind"]: each for each in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def manifests() -> Objects:
    """Returns the plain manifests."""
    return objects_of(MANIFESTS.read_text())


def pod() -> Mapping[str, Any]:
    """Returns what the Deployment says of its pods."""
    spec: Mapping[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return spec


def container() -> Mapping[str, Any]:
    """Returns the one container of the pods."""
    (only,) = pod()["containers"]
    found: Mapping[str, Any] = only
    return found


def container_environment() -> dict[str, str]:
    """Returns the environment of that container."""
    return {each["name"]: each["value"] for each in container()["env"]}


def compose() -> Mapping[str, Any]:
    """Returns the compose file."""
    found: Mapping[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def mounts(service: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the source and the target of each volume that a service of the compose file mounts."""
    pairs = []
    for volume in service.get("volumes", ()):
        source, target, *_ = volume.split(":") if isinstance(volume, str) else (volume["source"], volume["target"])
        pairs.append((source, target))
    return pairs


def unit() -> dict[str, list[str]]:
    """Returns the settings of the systemd unit, each value in a list."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def unit_environment() -> dict[str, str]:
    """Returns the environment that the unit sets."""
    return dict(pair.split("=", 1) for line in unit()["Environment"] for pair in line.split())


def instructions() -> Iterator[tuple[str, str]]:
    """Yields the instructions of the Dockerfile, each as its first word and the rest."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def image_environment() -> dict[str, str]:
    """Returns the environment that the image sets."""
    return dict(pair.split("=", 1) for word, rest in instructions() if word == "ENV" for pair in rest.split())


def seconds(text: str) -> int:
    """Returns a time such as `20s`."""
    return int(text.removesuffix("s"))
