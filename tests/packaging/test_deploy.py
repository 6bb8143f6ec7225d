"""deploy/: what it says about settings, ports, commands, probes and privileges holds for this catraca."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support import deploy
from tests.support.command import catraca
from tests.support.nodes import free_port
from tests.support.valkey import BINARY, WHY_MISSING
from tests.support.waiting import eventually

from catraca_server.api.handlers import SERVICE_NAME
from catraca_server.runtime.supervisor import WORKER_STOP_GRACE_SECONDS
from catraca_server.settings import SETTINGS, environment_name, load

HELM = shutil.which("helm") or shutil.which("helm", path=str(Path(sys.executable).parent))
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
KUBERNETES = "1.31.0"
CLIENTS = {"CATRACA_TARGET", "CATRACA_TLS_CA", "CATRACA_CONFIG"}
"""What probes need beside the settings, and where these may be."""

ENVIRONMENTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "kubernetes": deploy.container_environment,
    "compose": lambda: dict(deploy.compose()["services"]["catraca"]["environment"]),
    "systemd": deploy.unit_environment,
    "docker": lambda: {
        name: value for name, value in deploy.image_environment().items() if name.startswith("CATRACA_")
    },
}
READ_AGAIN = {
    "CATRACA_CALLERS_FILE",
    "CATRACA_TLS_CERT",
    "CATRACA_TLS_KEY",
    "CATRACA_TLS_CLIENT_CA",
    "CATRACA_TLS_CA",
    "CATRACA_STORE_TLS_CA",
    "CATRACA_STORE_TLS_CERT",
    "CATRACA_STORE_TLS_KEY",
}
"""Settings whose files may be replaced while the server runs, or between two probes."""

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def test_every_variable_is_a_setting() -> None:
    """Wherever deploy/ names one, in a comment too."""
    known = {environment_name(each.name) for each in SETTINGS} | CLIENTS
    for path in deploy.files():
        named = set(re.findall(r"CATRACA_\w+", path.read_text()))
        assert named <= known, path


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_settings_can_be_used(name: str, tmp_path: Path) -> None:
    """All of them together, with the file of secrets; nothing is left open, and nothing has no effect."""
    environment = ENVIRONMENTS[name]()
    config = tmp_path / "catraca.toml"
    config.write_text('store_password = "secret"\n')
    if "CATRACA_CONFIG" in environment:
        environment["CATRACA_CONFIG"] = str(config)
    if name == "docker":
        # The image has no certificate, so whoever runs it has to bring one.
        environment |= {f"CATRACA_{each}": f"/{each}" for each in ("TLS_CERT", "TLS_KEY", "CALLERS_FILE")}
    loaded = load({}, environment)
    assert loaded.warnings == ()
    assert loaded.settings.port == 50051
    assert not loaded.settings.insecure


def test_the_image_does_not_start_unprotected() -> None:
    """It listens on all addresses, where catraca insists on TLS and callers."""
    environment = ENVIRONMENTS["docker"]()
    done = catraca("config", "check", environment=environment)
    assert done.returncode == 2
    assert "host 0.0.0.0 is not loopback" in done.stderr


def assert_command(words: Sequence[str]) -> Mapping[str, str]:
    """Asserts that the command `catraca health` has these flags, and returns them."""
    program, command, *rest = words
    assert (program, command) == ("catraca", "health")
    shown = catraca("health", "--help").stdout
    flags = dict(zip(rest[::2], rest[1::2], strict=True))
    assert all(f"{flag} " in shown for flag in flags)
    return flags


def test_probes() -> None:
    """Each asks for a name that health knows, has the time it takes, and does not follow the store."""
    for probe in PROBES:
        says = deploy.container()[probe]
        flags = assert_command(says["exec"]["command"])
        assert flags.get("--service", "") in ("", SERVICE_NAME)
        assert deploy.seconds(flags["--timeout"]) < says["timeoutSeconds"]
    assert "--service" not in deploy.container()["livenessProbe"]["exec"]["command"]
    (check,) = (rest for word, rest in deploy.instructions() if word == "HEALTHCHECK")
    options, command = check.split("CMD ")
    flags = assert_command(json.loads(command))
    assert "--service" not in flags
    assert deploy.seconds(flags["--timeout"]) < int(re.findall(r"--timeout=(\d+)s", options)[0])


def test_there_is_time_to_drain() -> None:
    """Nobody is killed who still drains: the drain timeout, what comes before it and after it fit into the grace."""
    spec, environment = deploy.pod(), deploy.container_environment()
    program, sleep = deploy.container()["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    drain = deploy.seconds(environment["CATRACA_DRAIN_TIMEOUT"])
    assert spec["terminationGracePeriodSeconds"] >= int(sleep) + drain + WORKER_STOP_GRACE_SECONDS
    service = deploy.compose()["services"]["catraca"]
    drain = deploy.seconds(service["environment"]["CATRACA_DRAIN_TIMEOUT"])
    assert deploy.seconds(service["stop_grace_period"]) >= drain + WORKER_STOP_GRACE_SECONDS
    (stop,) = deploy.unit()["TimeoutStopSec"]
    drain = deploy.seconds(deploy.unit_environment()["CATRACA_DRAIN_TIMEOUT"])
    assert deploy.seconds(stop) >= drain + WORKER_STOP_GRACE_SECONDS
    assert deploy.unit()["KillMode"] == ["mixed"]


def test_nothing_runs_as_root() -> None:
    """Nor can anything become root, or write to its root file system."""
    spec, own = deploy.pod()["securityContext"], deploy.container()["securityContext"]
    assert spec["runAsNonRoot"] is True
    assert spec["runAsUser"] > 0
    assert spec["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for service in deploy.compose()["services"].values():
        user, _ = service["user"].split(":")
        assert int(user) > 0
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    users = [rest for word, rest in deploy.instructions() if word == "USER"]
    assert users == ["10001:10001"]
    assert deploy.unit()["User"] == ["catraca"]


def test_kubernetes_objects_belong_together() -> None:
    """Selectors choose the pods, ports are the server's, mounted secrets are there and settings point into them."""
    objects, environment = deploy.manifests(), deploy.container_environment()
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, selector in (
        ("Deployment", objects["Deployment"]["spec"]["selector"]["matchLabels"]),
        ("Service", objects["Service"]["spec"]["selector"]),
        ("PodDisruptionBudget", objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
        ("NetworkPolicy", objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]),
    ):
        assert selector.items() <= labels.items(), kind
    (port,) = deploy.container()["ports"]
    (service_port,) = objects["Service"]["spec"]["ports"]
    ((ingress,),) = (rule["ports"] for rule in objects["NetworkPolicy"]["spec"]["ingress"])
    assert (port["name"], port["containerPort"]) == ("grpc", int(environment["CATRACA_PORT"]))
    assert service_port["targetPort"] == ingress["port"] == port["name"]
    assert objects["Service"]["spec"]["clusterIP"] == "None"
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] < objects["Deployment"]["spec"]["replicas"]
    mounts = {each["name"]: each["mountPath"] for each in deploy.container()["volumeMounts"]}
    secrets = {each["name"]: each["secret"] for each in deploy.pod()["volumes"]}
    assert mounts.keys() == secrets.keys()
    assert all(each["defaultMode"] & 0o007 == 0 for each in secrets.values())
    for path in (value for value in environment.values() if value.startswith("/")):
        assert str(Path(path).parent) in mounts.values()
    assert deploy.pod()["enableServiceLinks"] is False


@pytest.mark.parametrize("name", ["kubernetes", "compose"])
def test_files_that_are_read_again_come_from_a_mounted_directory(name: str) -> None:
    """A container that mounts a single file keeps it when another is renamed over it, as `catraca keys revoke` does."""
    environment = ENVIRONMENTS[name]()
    if name == "kubernetes":
        mounts = deploy.container()["volumeMounts"]
        # With subPath, Kubernetes mounts a single file and never updates it.
        directories = {each["mountPath"] for each in mounts if not each.keys() & {"subPath", "subPathExpr"}}
    else:
        service = deploy.compose()["services"]["catraca"]
        assert "store-password" not in service.get("secrets", ()), "only the store needs it"
        directories = {target for _, target in deploy.mounts(service)}
    read_again = {variable: environment[variable] for variable in READ_AGAIN & environment.keys()}
    assert read_again.keys() >= {"CATRACA_CALLERS_FILE", "CATRACA_TLS_CERT", "CATRACA_TLS_KEY"}
    for variable, path in read_again.items():
        assert str(Path(path).parent) in directories, variable


@pytest.mark.skipif(BINARY is None, reason=WHY_MISSING)
def test_the_scripts_of_compose(tmp_path: Path) -> None:
    """They start a primary, its replica and a Sentinel that knows both, all with the password; no process shows it."""
    secret = tmp_path / "store-password"
    secret.write_text("hunter2\n")
    port, replica_port, sentinel_port = (free_port() for _ in range(3))
    scripts = deploy.COMPOSE.parent

    def start(stack: ExitStack, name: str, script: str, *words: str, **variables: str) -> None:
        (directory := tmp_path / name).mkdir(exist_ok=True)
        paths = {"STORE_SERVER": str(BINARY), "STORE_PASSWORD_FILE": str(secret), "STORE_DIRECTORY": str(directory)}
        process = subprocess.Popen(
            ["sh", str(scripts / script), *words],
            env={**os.environ, **paths, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

    def client(port: int, password: str | None = None) -> redis.Redis:
        return redis.Redis(port=port, password=password, retry=Retry(NoBackoff(), 0))

    def seen(sentinel: redis.Redis) -> bool:
        with suppress(redis.RedisError):
            known: Any = sentinel.sentinel_master("catraca")
            return bool(known["is_master"] and known["num-slaves"] == 1)
        return False

    with ExitStack() as stack:
        start(stack, "one", "store.sh", "127.0.0.1", STORE_PORT=str(port))
        ports = {"STORE_PORT": str(replica_port), "STORE_PRIMARY_PORT": str(port)}
        start(stack, "two", "store.sh", "127.0.0.1", "127.0.0.1", **ports)
        sentinel_ports = {"SENTINEL_PORT": str(sentinel_port), "STORE_PORT": str(port)}
        start(stack, "three", "sentinel.sh", "127.0.0.1", **sentinel_ports)
        sentinel, primary = client(sentinel_port), client(port, "hunter2")
        eventually(lambda: seen(sentinel), "the Sentinel knows the primary and its replica")
        assert primary.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(redis.AuthenticationError):
            client(port).ping()
        shown = subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert "hunter2" not in shown


def test_compose_has_what_it_mounts() -> None:
    """Each service names secrets, networks and volumes that are there, and the service the Sentinels that run."""
    compose = deploy.compose()
    for service in compose["services"].values():
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        assert set(service["networks"]) <= compose["networks"].keys()
        for source, _ in deploy.mounts(service):
            if source.startswith("./secrets/"):
                continue  # The operator makes these files.
            there = (
                (deploy.COMPOSE.parent / source).exists() if source.startswith(".") else source in compose["volumes"]
            )
            assert there, source
    store_url = compose["services"]["catraca"]["environment"]["CATRACA_STORE_URL"]
    assert set(re.findall(r"sentinel-\d", store_url)) < compose["services"].keys()
    assert all(each.startswith("127.0.0.1:") for each in compose["services"]["catraca"]["ports"])
    build = compose["services"]["catraca"]["build"]
    context = deploy.COMPOSE.parent / build["context"]
    assert (context / build["dockerfile"]).resolve() == deploy.DOCKERFILE


def test_the_image_is_made_of_the_lock() -> None:
    """Every package with its hash; and what is copied is there and reaches the builder."""
    installs = [rest for word, rest in deploy.instructions() if word == "RUN" and "install " in rest and "pip" in rest]
    assert ["--require-hashes" in each or "--no-deps --no-build-isolation ." in each for each in installs] == [True] * 2
    sent = {
        line.removeprefix("!")
        for line in deploy.DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for word, rest in deploy.instructions():
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            for source in sources:
                assert (deploy.ROOT / source).exists()
                assert source in sent


def test_nothing_names_another_registry() -> None:
    """Images come from where the machine gets its images."""
    images = [rest.split()[0] for word, rest in deploy.instructions() if word == "FROM"]
    images += [service["image"] for service in deploy.compose()["services"].values()]
    images.append(deploy.container()["image"])
    for image in images:
        first, _, rest = image.partition("/")
        assert not rest or ("." not in first and ":" not in first), image


@pytest.mark.skipif(HELM is None, reason="no helm, which renders the chart")
def test_the_chart_makes_the_manifests() -> None:
    """With its own values, the chart renders the objects of the plain manifests, and lints."""
    helm = str(HELM)
    subprocess.run([helm, "lint", "--strict", deploy.CHART], check=True, capture_output=True)
    rendered = helm_template(helm)
    assert {kind: _normal(each) for kind, each in rendered.items()} == {
        kind: _normal(each) for kind, each in deploy.manifests().items()
    }


@pytest.mark.skipif(HELM is None, reason="no helm, which renders the chart")
def test_the_values_of_the_chart_are_used() -> None:
    """Each of them changes what is rendered; a longer drain gets a longer grace."""
    helm = str(HELM)
    # Without a port the other values of the page have nothing to change.
    with_page = ("--set", "metrics.port=9464")
    default = helm_template(helm, *with_page)
    values = yaml.safe_load((deploy.CHART / "values.yaml").read_text())
    for name in _leaves(values):
        is_text = name not in {"replicas", "metrics.port", "metrics.podMonitor"} and "Seconds" not in name
        value = "true" if name == "metrics.podMonitor" else "61"
        changed = helm_template(helm, *with_page, "--set-string" if is_text else "--set", f"{name}={value}")
        assert changed != default, name
    spec = helm_template(helm, "--set", "drainTimeoutSeconds=60")["Deployment"]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 80
    assert {"name": "CATRACA_DRAIN_TIMEOUT", "value": "60s"} in spec["containers"][0]["env"]


@pytest.mark.skipif(HELM is None, reason="no helm, which renders the chart")
def test_the_chart_can_open_the_page_of_metrics() -> None:
    """To Prometheus only, on one port with one name everywhere; without a port there is nothing of it."""
    flags = ("--set", "metrics.port=9464", "--set", "metrics.podMonitor=true")
    objects = helm_template(str(HELM), *flags)
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert ports["metrics"] == int(environment["CATRACA_METRICS_PORT"]) == 9464
    paths = {f"CATRACA_{each}": f"/{each}" for each in ("TLS_CERT", "TLS_KEY", "CALLERS_FILE")}
    assert load({}, {**environment, "CATRACA_CONFIG": "", **paths}).warnings == ()
    _, opened = objects["NetworkPolicy"]["spec"]["ingress"]
    assert [each["port"] for each in opened["ports"]] == ["metrics"]
    assert [each.keys() for each in opened["from"]] == [{"namespaceSelector", "podSelector"}]
    monitor = objects["PodMonitor"]["spec"]
    assert [each["port"] for each in monitor["podMetricsEndpoints"]] == ["metrics"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert "PodMonitor" not in helm_template(str(HELM), "--set", "metrics.podMonitor=true")


def helm_template(helm: str, *flags: str) -> deploy.Objects:
    """Renders the chart."""
    command = [helm, "template", "catraca", str(deploy.CHART), "--kube-version", KUBERNETES, *flags]
    return deploy.objects_of(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _normal(value: Any) -> Any:
    """Returns an object with the environment of its containers as a mapping: its order means nothing."""
    match value:
        case dict():
            return {
                key: {each["name"]: each["value"] for each in item} if key == "env" else _normal(item)
                for key, item in value.items()
            }
        case list():
            return [_normal(item) for item in value]
        case _:
            return value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        name = prefix + key.replace(".", r"\.")
        if isinstance(value, dict):
            found += _leaves(value, f"{name}.")
        else:
            found.append(f"{name}[0]" if isinstance(value, list) else name)
    return found


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="no systemd-analyze")
def test_the_unit(tmp_path: Path) -> None:
    """The directives in it are known to systemd, which finds little that the service may do."""
    unit = tmp_path / "catraca.service"
    unit.write_text(deploy.UNIT.read_text().replace("/opt/catraca/bin/catraca ", f"{sys.executable} -m catraca "))
    verified = subprocess.run([str(SYSTEMD_ANALYZE), "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = [str(SYSTEMD_ANALYZE), "security", "--offline=yes", "--threshold=15", str(unit)]
    secured = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in secured.stderr:
        pytest.skip("this systemd-analyze cannot look at a unit that is not installed")
    assert secured.returncode == 0, secured.stdout


def test_the_unit_does_not_retry_settings_that_cannot_be_used() -> None:
    """`serve` itself reports them: systemd applies RestartPreventExitStatus to no process but the main one."""
    unit = deploy.unit()
    assert "ExecStartPre" not in unit
    (words,) = (each.split()[1:] for each in unit["ExecStart"])
    assert words == ["serve"]
    refused = catraca(*words, environment={**deploy.unit_environment(), "CATRACA_PORT": "x"})
    assert "CATRACA_PORT" in refused.stderr
    assert unit["RestartPreventExitStatus"] == [str(refused.returncode)]
