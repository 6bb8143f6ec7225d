"""What users install: the wheel alone, with its server extra, and with the oldest dependencies that it allows."""

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from tests.support.environments import Environment, isolated
from tests.support.service import ServeProcess

from catraca import SessionClient

ROOT = Path(__file__).parents[2]
PACKAGES = {"catraca": ROOT / "client" / "catraca", "catraca_server": ROOT / "server" / "catraca_server"}
USAGE = 2

LIFE = """
import sys
from datetime import timedelta
from catraca import InvalidReason, SessionClient
with SessionClient(timeout=20) as sessions:
    login = sessions.create("12345", ttl=timedelta(minutes=1), attributes={"device": "phone"})
    assert sessions.require(login.token).attributes == {"device": "phone"}
    assert [bool(each) for each in sessions.validate_batch([login.token, "x"])] == [True, False]
    assert sessions.revoke(token=login.token)
    assert sessions.validate(login.token).reason is InvalidReason.NOT_FOUND
print("lived")
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)],
        env=isolated({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    """The wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Makes environments with packages installed; skips if there is no index."""
    made = Environment(tmp_path_factory.mktemp("probe") / "venv")
    if why := made.why_no_index():
        pytest.skip(why)

    def make(*requirements: str) -> Environment:
        new = Environment(tmp_path_factory.mktemp("environment") / "venv")
        new.install(*requirements)
        return new

    return make


@pytest.fixture(scope="session")
def client_alone(environment: Callable[..., Environment], wheel: Path) -> Environment:
    """An environment with the wheel and its dependencies, and nothing else."""
    return environment(str(wheel))


@pytest.fixture(scope="module")
def service() -> Iterator[ServeProcess]:
    """A service of this checkout."""
    with ServeProcess(store_url="memory:", store_timeout="10s") as process:
        yield process


def contents(package: Path) -> set[str]:
    """Returns the files of a package in the checkout, by their place in the wheel."""
    return {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_both_packages_and_nothing_else(wheel: Path) -> None:
    """All files of the two packages are in it, with their types, scripts and descriptors; and no test."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == contents(PACKAGES["catraca"]) | contents(PACKAGES["catraca_server"])
    assert {
        "catraca/py.typed",
        "catraca_server/py.typed",
        "catraca/v1/descriptors.binpb",
        "catraca/v1/session_service_pb2_grpc.pyi",
        "catraca_server/store/scripts/touch.lua",
    } <= names
    assert any(name.endswith("/licenses/LICENSE") for name in information)


def test_the_sdist_has_what_the_wheel_is_made_of(built: Path) -> None:
    """Sources, protos and the texts are in it; nothing of the tests, the benchmarks or this machine."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"client/catraca/__init__.py", "server/catraca_server/app.py", "LICENSE", "README.md"} <= names
    assert "protos/catraca/v1/session_service.proto" in names
    assert {name.partition("/")[0] for name in names} <= {
        "client",
        "server",
        "protos",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "pyproject.toml",
        ".gitignore",
    }
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_client_alone(client_alone: Environment, service: ServeProcess) -> None:
    """The wheel alone lets a program live through a session, without Redis or anything else of the server's."""
    installed = {name.lower().replace("_", "-") for name in client_alone.versions()}
    assert installed - {"pip", "setuptools"} == {
        "catraca",
        "grpcio",
        "protobuf",
        "googleapis-common-protos",
        "typing-extensions",
    }
    lived = client_alone.run("-c", LIFE, target=service.target)
    assert (lived.returncode, lived.stdout) == (0, "lived\n"), lived.stderr
    imported = client_alone.run("-c", "import redis")
    assert "No module named 'redis'" in imported.stderr


def test_the_command_of_the_client_alone(client_alone: Environment, service: ServeProcess) -> None:
    """The client's commands work without the server; those that need it say what to install."""
    command = str(client_alone.python.with_name("catraca"))
    created = subprocess.run(
        [command, "create", "--user-id", "12345"],
        env=isolated({"CATRACA_TARGET": service.target, "CATRACA_TIMEOUT": "20s"}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ctr_" in created.stdout
    for words in (("serve",), ("config", "show"), ("demo",)):
        refused = client_alone.run("-m", "catraca", *words)
        assert refused.returncode == USAGE, refused.stderr
        assert "pip install 'catraca[server]'" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert client_alone.run("-m", "catraca", "--help").returncode == 0


def test_with_the_server_extra(environment: Callable[..., Environment], wheel: Path) -> None:
    """The wheel with its server extra serves, and plays its demo."""
    full = environment(f"{wheel}[server]")
    demo = full.run("-m", "catraca", "demo", "--ttl", "500ms")
    assert demo.returncode == 0, demo.stderr
    with ServeProcess(python=full.python, store_url="memory:") as process:
        with SessionClient(process.target, timeout=20) as sessions:
            assert sessions.validate(sessions.create("12345").token)
        assert process.stop() == 0


def test_the_client_at_its_floors(
    environment: Callable[..., Environment], wheel: Path, metadata: Message, service: ServeProcess
) -> None:
    """With the oldest versions of all that it depends on, the client still lives through a session."""
    required = [text for text in metadata.get_all("Requires-Dist", []) if ";" not in text]
    floors = dict(re.findall(r"([a-z-]+)[^>]*>=([0-9.]+)", "\n".join(required)))
    assert floors.keys() == {"grpcio", "protobuf", "googleapis-common-protos"}
    oldest = environment(str(wheel), *(f"{name}=={version}" for name, version in floors.items()))
    versions = oldest.versions()
    assert all(f"{versions[name]}.".startswith(f"{version}.") for name, version in floors.items()), versions
    lived = oldest.run("-W", "error", "-c", LIFE, target=service.target)
    assert (lived.returncode, lived.stdout) == (0, "lived\n"), lived.stderr


def test_the_types_as_users_see_them(client_alone: Environment, tmp_path: Path) -> None:
    """A strict type checker that knows nothing but the installed wheel finds the public API typed as promised."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}"),
            *("--python-executable", str(client_alone.python), str(Path(__file__).with_name("typing_api.py"))),
        ],
        env=isolated({}),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
