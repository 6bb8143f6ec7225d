"""TLS on the wire: who can listen without it, whose certificate counts, and certificates that change."""

import asyncio
import logging
import os
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from tests.support.certificates import Authority, Issued, encrypted_key
from tests.support.command import catraca
from tests.support.inprocess import serving
from tests.support.repeating import repeating
from tests.support.service import ServeProcess
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, SessionClient
from catraca.errors import InvalidSetting, Unavailable
from catraca_server.api.tls import Certificate, CertificateError

CA = Authority()
EXPIRED = timedelta(days=1)


class Files:
    """What a server with TLS reads."""

    def __init__(self, directory: Path, issued: Issued | None = None) -> None:
        self.certificate, self.key, self.ca = directory / "tls.crt", directory / "tls.key", directory / "ca.crt"
        self.ca.write_bytes(CA.pem)
        self.write(issued or CA.server())

    def write(self, issued: Issued) -> None:
        """Replaces certificate and key."""
        issued.write(self.certificate, self.key)

    def settings(self, *, mutual: bool = False) -> dict[str, str]:
        """Returns the settings of a server that uses them."""
        settings = {"store_url": "memory:", "tls_cert": str(self.certificate), "tls_key": str(self.key)}
        return settings | ({"tls_client_ca": str(self.ca)} if mutual else {})

    def environment(self, *, mutual: bool = False) -> dict[str, str]:
        """Returns the same as variables, without the store."""
        settings = self.settings(mutual=mutual)
        return {f"CATRACA_{name.upper()}": value for name, value in settings.items() if name != "store_url"}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A certificate for loopback."""
    return Files(tmp_path)


def client(target: str, issued: Issued | None = None, authority: Authority = CA) -> AsyncSessionClient:
    """Returns a client over TLS, with a connection of its own."""
    return AsyncSessionClient(target, credentials=authority.channel_credentials(issued), timeout=10)


async def served_certificate(target: str) -> bytes:
    """Returns the certificate that the server shows to a new connection, in DER."""
    host, _, port = target.rpartition(":")
    context = ssl.create_default_context(cadata=CA.pem.decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


def der(issued: Issued) -> bytes:
    """Returns a certificate in DER."""
    return ssl.PEM_cert_to_DER_cert(issued.certificate.decode())


async def test_a_client_checks_the_server(files: Files) -> None:
    """It talks to a server that its authority has signed, and to no other, nor in clear."""
    async with serving(**files.settings()) as target:
        async with client(target) as sessions:
            assert await sessions.validate((await sessions.create("12345")).token)
        stranger = client(target, authority=Authority("another"))
        for wrong in (stranger, AsyncSessionClient(target, timeout=1)):
            async with wrong:
                with pytest.raises(Unavailable):
                    await wrong.create("12345", timeout=1)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_versions_of_tls_are_refused(files: Files) -> None:
    """TLS 1.2 is the oldest that the server speaks."""
    async with serving(**files.settings()) as target:
        host, _, port = target.rpartition(":")
        accepted = {}
        for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cadata=CA.pem.decode())
            # Or else OpenSSL itself would refuse to speak 1.1.
            context.set_ciphers("DEFAULT@SECLEVEL=0")
            context.set_alpn_protocols(["h2"])
            context.minimum_version = context.maximum_version = version
            try:
                _, writer = await asyncio.open_connection(host, int(port), ssl=context)
                writer.transport.abort()
                accepted[version.name] = True
            except OSError:
                accepted[version.name] = False
    assert accepted == {"TLSv1_1": False, "TLSv1_2": True, "TLSv1_3": True}


async def test_mutual_tls_wants_a_certificate_of_the_authority(files: Files) -> None:
    """Without one, with another authority's, or with an expired one, no call gets through."""
    async with serving(**files.settings(mutual=True)) as target:
        async with client(target, CA.client(dns="shop.test")) as sessions:
            assert (await sessions.create("12345")).token
        for wrong in (None, Authority("another").client(dns="shop.test"), CA.client(dns="shop.test", lives=-EXPIRED)):
            async with client(target, wrong) as sessions:
                with pytest.raises(Unavailable):
                    await sessions.create("12345", timeout=1)


async def test_a_certificate_is_replaced_while_calls_go_on(files: Files) -> None:
    """The next connection sees the new one, the connections there are go on, and no call fails."""
    async with serving(**files.settings()) as target, client(target) as sessions:
        token = (await sessions.create("12345")).token

        async def call() -> None:
            assert await sessions.validate(token)
            async with client(target) as another:
                assert await another.validate(token)

        async with repeating(call) as calls:
            for _ in range(3):
                renewed = CA.server()
                files.write(renewed)

                async def shows_it(renewed: Issued = renewed) -> bool:
                    return await served_certificate(target) == der(renewed)

                await eventually_async(shows_it, "the new certificate is shown")
                await calls.go_on()
    assert calls.failures == []


async def test_the_clients_authority_is_replaced(files: Files) -> None:
    """The next connection is checked against the new one."""
    new = Authority("a new authority")
    async with serving(**files.settings(mutual=True)) as target:
        files.ca.write_bytes(new.pem)

        async def let_in(issued: Issued) -> bool:
            async with client(target, issued) as sessions:
                try:
                    return bool((await sessions.create("12345", timeout=1)).token)
                except Unavailable:
                    return False

        async def new_is_let_in() -> bool:
            return await let_in(new.client(dns="shop.test"))

        await eventually_async(new_is_let_in, "the new authority is in force")
        assert not await let_in(CA.client(dns="shop.test"))


async def test_broken_files_keep_the_old_certificate(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong, the log says so once and connections see the certificate of before, until it is mended."""
    old = files.certificate.read_bytes()
    caplog.set_level(logging.INFO, "catraca_server.api.tls")
    async with serving(**files.settings(mutual=True)) as target:

        async def still_served() -> None:
            for _ in range(2):
                async with client(target, CA.client(dns="shop.test")) as sessions:
                    assert (await sessions.create("12345")).token

        def encrypt_key() -> None:
            files.certificate.write_bytes(old)
            files.key.write_bytes(encrypted_key())

        def spoil_authority() -> None:
            files.write(CA.server())
            files.ca.write_text("nonsense")

        faults: dict[str, Callable[[], object]] = {
            "the key is not that of the certificate": lambda: files.certificate.write_bytes(CA.server().certificate),
            "not valid PEM": lambda: files.certificate.write_text("nonsense"),
            "encrypted": encrypt_key,
            "has no certificates": spoil_authority,
            "cannot be read": files.key.unlink,
        }
        for text, break_them in faults.items():
            caplog.clear()
            break_them()
            await still_served()
            (line,) = [record.getMessage() for record in caplog.records]
            assert line.startswith("certificate not reloaded, the old one stays in force: ")
            assert text in line
        renewed = CA.server()
        files.ca.write_bytes(CA.pem)
        files.write(renewed)

        async def new_is_served() -> bool:
            await still_served()
            return any("certificate reloaded" in record.getMessage() for record in caplog.records)

        await eventually_async(new_is_served, "the mended certificate is served")


@pytest.mark.parametrize("broken", ["certificate", "key", "ca"])
def test_a_certificate_that_cannot_be_used_at_the_start(files: Files, broken: str) -> None:
    """The error names the files, and what is wrong."""
    getattr(files, broken).write_text("nonsense")
    with pytest.raises(CertificateError, match=str(files.ca if broken == "ca" else files.certificate)):
        Certificate(files.certificate, files.key, files.ca).credentials()


def test_a_start_without_its_certificate(files: Files) -> None:
    """The service ends with the reason and the settings."""
    files.key.unlink()
    done = catraca("serve", environment={**files.environment(), "CATRACA_STORE_URL": "memory:", "CATRACA_PORT": "0"})
    assert done.returncode == 3
    assert f"{files.key} cannot be read: No such file or directory. It is set by" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_over_tls(files: Files, tmp_path: Path) -> None:
    """Flags and their twins name the authority and the client's own certificate; `serve` takes no notice of them."""
    CA.client(dns="ops.test").write(tmp_path / "ops.crt", tmp_path / "ops.key")
    own = {"CATRACA_TLS_CERT": str(tmp_path / "ops.crt"), "CATRACA_TLS_KEY": str(tmp_path / "ops.key")}
    with ServeProcess(
        {"CATRACA_TLS_CA": str(files.ca), **files.environment(mutual=True)}, store_url="memory:"
    ) as service:
        assert "is not a setting" not in service.log

        def health(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
            return catraca("health", "--target", service.target, "--timeout", "5s", *flags, environment=environment)

        assert health(CATRACA_TLS_CA=str(files.ca), **own).stdout == "serving\n"
        flags = ("--tls-ca", str(files.ca), "--tls-cert", own["CATRACA_TLS_CERT"], "--tls-key", own["CATRACA_TLS_KEY"])
        assert health(*flags).stdout == "serving\n"
        assert health("--timeout", "1s", CATRACA_TLS_CA=str(files.ca)).returncode == 3
        half = health(CATRACA_TLS_CA=str(files.ca), CATRACA_TLS_CERT=own["CATRACA_TLS_CERT"])
        assert half.returncode == 2
        assert "CATRACA_TLS_CERT is set and --tls-key is not" in half.stderr
        created = catraca(
            "create", "--user-id", "12345", "--target", service.target, "--timeout", "5s",
            environment={"CATRACA_TLS_CA": str(files.ca), **own},
        )  # fmt: skip
        assert created.returncode == 0, created.stderr
        created = catraca("create", "--user-id", "12345", "--target", service.target, "--timeout", "5s", *flags)
        assert created.returncode == 0, created.stderr


def test_files_that_a_client_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are found when the client is made."""
    (tmp_path / "nonsense").write_text("nonsense")
    for path, why in ((tmp_path / "nothing", "cannot be read"), (tmp_path / "nonsense", "is not PEM")):
        monkeypatch.setenv("CATRACA_TLS_CA", str(path))
        with pytest.raises(InvalidSetting, match=f"CATRACA_TLS_CA .*{why}"):
            SessionClient("localhost:1")


def test_several_workers_over_tls(files: Files) -> None:
    """Each reads the certificate by itself."""
    with (
        ServeProcess(
            files.environment(), store_url="embedded:", workers="2", data_dir=str(files.ca.parent / "data")
        ) as service,
        SessionClient(service.target, credentials=CA.channel_credentials(), timeout=10) as sessions,
    ):
        assert sessions.validate(sessions.create("12345").token)


@asynccontextmanager
async def secure_status(*, host: str = "127.0.0.1") -> AsyncIterator[list[str]]:
    """Runs a service with --insecure and yields what health says of `secure`, and its log."""
    with ServeProcess(store_url="memory:", host=host, insecure="true") as service:
        port = service.target.rpartition(":")[2]
        done = catraca("health", "--service", "secure", "--target", f"127.0.0.1:{port}", "--timeout", "5s")
        yield [done.stdout.strip(), service.log]


async def test_insecure_is_seen() -> None:
    """It warns at the start, and health has it under `secure`; the service as a whole serves."""
    async with secure_status(host="0.0.0.0") as (status, log):  # noqa: S104  that is the point
        assert status == "not serving"
        assert "WARNING INSECURE: others can reach 0.0.0.0, and there is no TLS" in log
        assert "anybody may call" in log
    async with secure_status() as (status, log):
        assert status == "serving"
        assert "INSECURE" not in log


def test_a_unix_socket(tmp_path: Path) -> None:
    """Only its user can connect; a socket that a crash left is no obstacle, one in use is; it goes with the server."""
    path = tmp_path / "run" / "catraca.sock"
    service = ServeProcess(store_url="memory:", host=f"unix:{path}")
    with service:
        assert service.target == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with SessionClient(service.target, timeout=10) as sessions:
            assert sessions.validate(sessions.create("12345").token)
        second = catraca("serve", "--host", f"unix:{path}", environment={"CATRACA_STORE_URL": "memory:"})
        assert second.returncode == 3
        assert "another program listens there" in second.stderr
        with SessionClient(service.target, timeout=10) as sessions:
            assert sessions.create("12345").token
        service.process.kill()
        service.wait()
    assert path.exists(), "a crash leaves it"
    with ServeProcess(store_url="memory:", host=f"unix:{path}") as after:
        assert catraca("health", "--target", after.target, "--timeout", "5s").stdout == "serving\n"
        assert after.stop() == 0
    assert not path.exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_unix_socket_where_nothing_may_be_written(tmp_path: Path) -> None:
    """The error says so."""
    tmp_path.chmod(0o500)
    done = catraca("serve", "--host", f"unix:{tmp_path}/catraca.sock", environment={"CATRACA_STORE_URL": "memory:"})
    assert done.returncode == 3
    assert "may not be written by this user" in done.stderr


def test_grpc_understands_the_credentials(files: Files) -> None:
    """The credentials are grpcio's own type, so that any server of it could listen with them."""
    assert isinstance(Certificate(files.certificate, files.key, None).credentials(), grpc.ServerCredentials)
