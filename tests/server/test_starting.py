"""What `catraca serve` refuses to start with, with the reason and the remedy."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.support.command import catraca
from tests.support.fake_redis import FakeRedis, bulk
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_MISSING, Valkey

from catraca import SessionClient
from catraca_server.runtime.core_environment import ENVIRONMENT

USAGE, UNAVAILABLE = 2, 3


def serve(*flags: str, **settings: str) -> CompletedProcess[str]:
    """Runs `catraca serve` where it is expected not to start; by default with a store in memory."""
    environment = {"CATRACA_STORE_URL": "memory:", "CATRACA_PORT": "0"}
    environment |= {f"CATRACA_{name.upper()}": value for name, value in settings.items()}
    return catraca("serve", *flags, environment=environment)


def assert_refused(done: CompletedProcess[str], status: int, *messages: str) -> None:
    """Asserts that it did not start, and that the last line says why, without a traceback."""
    assert done.returncode == status, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("catraca: ")
    for text in messages:
        assert text in last
    assert "Traceback" not in done.stderr


def test_port_in_use() -> None:
    """It fails at once, and says how to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = serve(port=str(port))
    assert_refused(refused, UNAVAILABLE, f"cannot listen on 127.0.0.1:{port}", "--port")


def test_port_of_another_catraca() -> None:
    """Two servers never share a port: each caller would reach either of them."""
    with ServeProcess(store_url="memory:") as first:
        assert_refused(serve(port=first.target.rpartition(":")[2]), UNAVAILABLE, "another program has that port")


def test_an_address_of_another_machine() -> None:
    """An address that this machine does not have cannot be listened on."""
    refused = serve("--insecure", "--host", "192.0.2.1")
    assert_refused(refused, UNAVAILABLE, "192.0.2.1:0", "is not an address of this machine", "--host")


def test_a_host_that_cannot_be_resolved() -> None:
    """The reason is not confused with a port in use."""
    refused = serve("--insecure", "--host", "catraca.invalid")
    assert_refused(refused, UNAVAILABLE, "catraca.invalid:0", "the name cannot be resolved", "--host")


@pytest.mark.parametrize("host", ["LOCALHOST", "localhost.", "127.1", "::ffff:127.0.0.1", " 127.0.0.1 ", "[::1]"])
def test_loopback_works_however_it_is_written(host: str) -> None:
    """The service listens there, and prints the address in a form that clients understand."""
    with ServeProcess(store_url="memory:", host=host) as process, SessionClient(process.target, timeout=10) as sessions:
        assert sessions.validate(sessions.create("12345").token)


def test_a_unix_socket_to_listen_on() -> None:
    """It takes an absolute path; `test_tls` shows one that works."""
    assert_refused(serve(host="unix:catraca.sock"), USAGE, "CATRACA_HOST must be", "absolute path of a socket")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the environment of a process")
@pytest.mark.parametrize("own", [None, ""], ids=["ours", "the operator's"])
def test_the_listener_of_grpc_is_chosen(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before gRPC is imported, in the process that was started; unless the operator has chosen. gRPC knows the name."""
    monkeypatch.delenv("GRPC_EXPERIMENTS")
    # Or else the core says nothing of a name that it does not know.
    environment = {"GRPC_VERBOSITY": "ERROR"} | ({} if own is None else {"GRPC_EXPERIMENTS": own})
    with ServeProcess(environment, store_url="memory:") as process:
        found = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        chosen = ENVIRONMENT["GRPC_EXPERIMENTS"] if own is None else own
        assert f"GRPC_EXPERIMENTS={chosen}".encode() in found
        assert "experiment" not in process.log


def test_without_a_home_directory_there_is_no_default_data_directory(tmp_path: Path) -> None:
    """Where the user has no home directory, the data directory has to be set."""
    code = "import os, runpy; os.getuid = lambda: 2**31 - 7; runpy.run_module('catraca', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve"],
        env={**ENVIRONMENT, "CATRACA_VALKEY_SERVER": "/bin/true", "CATRACA_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert_refused(done, UNAVAILABLE, "nowhere to keep its data", "--data-dir")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])  # noqa: S104
def test_all_but_loopback_needs_insecure(host: str) -> None:
    """Where others could reach it, it starts only with --insecure."""
    assert_refused(serve(host=host), USAGE, f"host {host} is not loopback", "--insecure")


def test_insecure_listens_anywhere() -> None:
    """With --insecure it listens on all addresses."""
    with ServeProcess(store_url="memory:", host="0.0.0.0", insecure="true") as process:  # noqa: S104
        port = process.target.rpartition(":")[2]
        with SessionClient(f"127.0.0.1:{port}", timeout=10) as sessions:
            assert sessions.validate(sessions.create("12345").token)


def test_memory_warns() -> None:
    """A store in memory says that it is not for production, and loses its sessions with the process."""
    with ServeProcess(store_url="memory:") as process:
        assert "WARNING SESSIONS ARE KEPT IN MEMORY" in process.log
        assert "not for production" in process.log
        with SessionClient(process.target, timeout=10) as sessions:
            token = sessions.create("12345").token
            assert sessions.validate(token)
    with ServeProcess(store_url="memory:") as process, SessionClient(process.target, timeout=10) as sessions:
        assert not sessions.validate(token)


def test_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A data directory under a file cannot be made, not even by root."""
    file = tmp_path / "file"
    file.touch()
    refused = serve(store_url="embedded:", data_dir=str(file / "data"))
    assert_refused(refused, UNAVAILABLE, f"data directory {file / 'data'} cannot be used", "--data-dir")


def test_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A data directory without write permission is refused."""
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write into every directory")
    refused = serve(store_url="embedded:", data_dir=str(tmp_path))
    assert_refused(refused, UNAVAILABLE, "cannot be used (Permission denied)", "--data-dir")


def test_data_directory_with_too_long_a_path(tmp_path: Path) -> None:
    """A path that no Unix socket can have is refused before anything is made there."""
    data_dir = tmp_path / ("long" * 30)
    refused = serve(store_url="embedded:", data_dir=str(data_dir))
    assert_refused(refused, UNAVAILABLE, "too long a path", "choose a shorter --data-dir")
    assert not data_dir.exists()


@pytest.mark.parametrize("url", ["postgres://localhost", "localhost:6379", "valkey://localhost", ""])
def test_store_url_of_something_else(url: str) -> None:
    """It is refused with the schemes that can be used."""
    done = serve(store_url=url)
    assert done.returncode in (USAGE, UNAVAILABLE)
    assert "redis://" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://localhost/sessions", "names no database by number"),
        ("redis://localhost?socket_timeout=5", "(socket_timeout)"),
        ("unix://", "names no socket"),
        ("redis://localhost:port", "is not the URL of a Redis"),
    ],
)
def test_store_url_with_a_mistake(url: str, message: str) -> None:
    """It is refused with what is wrong in it."""
    assert_refused(serve(store_url=url), USAGE, message)


def test_no_store_at_the_url(tmp_path: Path) -> None:
    """Where nothing listens there is no reply."""
    url = f"unix://{tmp_path}/nothing.sock"
    assert_refused(serve(store_url=url), UNAVAILABLE, f"no answer at {url}", "CATRACA_STORE_URL")


def test_a_store_that_does_not_reply() -> None:
    """It is not waited for longer than the store timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        refused = serve(store_url=url)
    assert_refused(refused, UNAVAILABLE, "no answer from the store within", "CATRACA_STORE_URL")


def test_wrong_password(own_valkey: Valkey) -> None:
    """The message says so, and shows no password."""
    own_valkey.command("CONFIG", "SET", "requirepass", "the-right-one")
    with_another = own_valkey.url.replace("unix://", "unix://:a-wrong-one@")
    for refused in (
        serve(store_url=own_valkey.url),
        serve(store_url=own_valkey.url, store_password="a-wrong-one"),
        serve(store_url=with_another),
    ):
        assert_refused(refused, UNAVAILABLE, "did not accept the user or password", "CATRACA_STORE_PASSWORD")
        assert "a-wrong-one" not in refused.stderr
    with ServeProcess(store_url=own_valkey.url, store_password="the-right-one") as process:
        assert "the-right-one" not in process.log


def test_a_store_that_may_evict_sessions(own_valkey: Valkey) -> None:
    """A maxmemory-policy that evicts is refused, unless that is accepted."""
    own_valkey.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    refused = serve(store_url=own_valkey.url)
    assert_refused(refused, UNAVAILABLE, "maxmemory-policy allkeys-lru", "noeviction", "--allow-eviction")
    with ServeProcess(store_url=own_valkey.url, allow_eviction="true") as process:
        assert "listening" in process.log


def test_a_database_that_does_not_exist(own_valkey: Valkey) -> None:
    """The message names the database number."""
    refused = serve(store_url=f"{own_valkey.url}?db=99")
    assert_refused(refused, UNAVAILABLE, "check the database number")


def test_a_user_who_may_not_run_info(own_valkey: Valkey) -> None:
    """The message says which right is missing, and shows no password."""
    own_valkey.command("ACL", "SETUSER", "limited", "on", ">its-password", "~*", "+@all", "-info")
    refused = serve(store_url=own_valkey.url.replace("unix://", "unix://limited:its-password@"))
    assert_refused(refused, UNAVAILABLE, "may run INFO")
    assert "its-password" not in refused.stderr


def test_a_replica(own_valkey: Valkey) -> None:
    """A replica is refused: its data may be outdated."""
    own_valkey.command("REPLICAOF", "127.0.0.1", "1")
    assert_refused(serve(store_url=own_valkey.url), UNAVAILABLE, "is a replica", "name the primary")


@pytest.mark.parametrize(
    ("name", "value", "messages"),
    [
        ("redis_version", "6.0.16", ("is version 6.0.16", "needs Redis 6.2 or newer, or any Valkey")),
        ("redis_version", "2.8", ("is version 2.8", "needs Redis 6.2")),
        ("cluster_enabled", "1", ("is a node of a cluster", "redis+cluster://")),
        ("loading", "1", ("is still loading its data",)),
    ],
)
async def test_a_store_that_cannot_be_used(name: str, value: str, messages: tuple[str, ...], tmp_path: Path) -> None:
    """A store whose INFO shows that it cannot be used is refused with the reason."""
    async with FakeRedis(tmp_path / "fake.sock", info={name: value}) as fake:
        refused = await asyncio.to_thread(serve, store_url=fake.url)
    assert_refused(refused, UNAVAILABLE, *messages)


@pytest.mark.parametrize("info", [b"", b"redis_version:unknown", b"HTTP/1.1 400 Bad Request"])
async def test_a_store_with_a_malformed_info(info: bytes, tmp_path: Path) -> None:
    """What does not reply like a Redis is refused."""

    def reply_to(command: list[bytes]) -> bytes | None:
        return bulk(info) if command[0] == b"INFO" else None

    async with FakeRedis(tmp_path / "fake.sock", reply_to) as fake:
        refused = await asyncio.to_thread(serve, store_url=fake.url)
    assert_refused(refused, UNAVAILABLE, "does not tell its version", "CATRACA_STORE_URL")


async def test_a_version_with_a_suffix(tmp_path: Path) -> None:
    """Only the number counts."""
    async with (
        FakeRedis(tmp_path / "fake.sock", info={"redis_version": "7.2.4-rc1"}) as fake,
        ServeProcess(store_url=fake.url) as process,
    ):
        assert "listening" in process.log


def test_pepper_that_cannot_be_used(tmp_path: Path) -> None:
    """A pepper that is missing, a directory or short is refused."""
    pepper = tmp_path / "pepper"
    assert_refused(serve(token_pepper_file=str(tmp_path)), UNAVAILABLE, f"{tmp_path} cannot be read: Is a directory")
    assert_refused(serve(token_pepper_file=str(pepper)), UNAVAILABLE, f"{pepper} cannot be read: No such file")
    pepper.write_bytes(b"x" * 31)
    assert_refused(serve(token_pepper_file=str(pepper)), UNAVAILABLE, "at least 32 bytes")


def test_a_binary_that_does_not_exist(tmp_path: Path) -> None:
    """The message names CATRACA_VALKEY_SERVER."""
    refused = serve(store_url="embedded:", data_dir=str(tmp_path), valkey_server="/no/valkey-server")
    assert_refused(refused, UNAVAILABLE, "CATRACA_VALKEY_SERVER=/no/valkey-server is not a program")


def test_a_binary_that_is_not_a_store(tmp_path: Path) -> None:
    """A program that ends at once is reported with the log to read."""
    refused = serve(store_url="embedded:", data_dir=str(tmp_path), valkey_server="/bin/false")
    assert_refused(refused, UNAVAILABLE, "ended while starting", str(tmp_path / "valkey.log"))


def test_data_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The message says where to look and how to start without it; the data is not changed."""
    if BINARY is None:
        pytest.skip(WHY_MISSING)
    data_dir = str(tmp_path)
    with ServeProcess(data_dir=data_dir) as process:
        with SessionClient(process.target, timeout=10) as sessions:
            sessions.create("12345")
        assert process.stop() == 0
    (file,) = (path for path in (tmp_path / "appendonlydir").iterdir() if path.name.endswith(".incr.aof"))
    damaged = b"this is not an append-only file" + file.read_bytes()
    file.write_bytes(damaged)
    assert_refused(
        serve(store_url="embedded:", data_dir=data_dir), UNAVAILABLE, "ended while starting", "--data-dir starts anew"
    )
    assert file.read_bytes() == damaged
