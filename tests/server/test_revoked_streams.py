"""Watch streams of callers that lose the right to them while they are open: they end soon, and no others do."""

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.callers import Caller as Client, closing
from tests.support.certificates import Issued
from tests.support.command import clean_environment
from tests.support.door import CA, Door
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async
from tests.support.wire import Refusal, refusal_of

from catraca import AsyncSessionClient, SessionClient
from catraca.errors import NotAllowed
from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.api import callers
from catraca_server.domain.call import Role

UNAUTHENTICATED: Refusal = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", [])
PERMISSION_DENIED: Refusal = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", [])


@pytest.fixture(autouse=True)
def _checks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "CHECK_SECONDS", 0.02)


class Watch:
    """An open stream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> str:
        """Returns which response comes next."""
        response = await asyncio.wait_for(self._call.read(), TIMEOUT_SECONDS)
        assert response is not grpc.aio.EOF
        return str(response.WhichOneof("response"))

    async def is_open(self) -> bool:
        """Pings, and returns whether a pong comes."""
        await self._call.write(pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=1)))
        return await self.read() == "pong"

    async def refusal(self) -> Refusal:
        """Returns how the stream ends."""
        try:
            while True:
                await self.read()
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)


@asynccontextmanager
async def watching(target: str, key: str = "", client: Issued | None = None) -> AsyncIterator[Watch]:
    """Opens a watch with a key or a certificate."""
    # What a connection takes in for one who does not read stays small.
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65_536),
    ]
    async with grpc.aio.secure_channel(target, CA.channel_credentials(client), options) as channel:
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        call = SessionServiceStub(channel).WatchSessions(metadata=metadata)
        await call.write(pb.WatchSessionsRequest(start=pb.WatchStart()))
        watch = Watch(call)
        assert await watch.read() == "opened"
        yield watch


async def test_a_revoked_key(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Its streams end as its calls do, and the log names it. Streams of other keys of the same caller go on."""
    key, other = door.new_key(Role.VALIDATE), door.new_key(Role.VALIDATE)
    async with (
        door.serving() as target,
        watching(target, key) as revoked,
        watching(target, key) as second,
        watching(target, other) as good,
    ):
        door.revoke(key)
        assert await revoked.refusal() == UNAUTHENTICATED
        assert await second.refusal() == UNAUTHENTICATED
        assert await good.is_open()
    lines = [each for each in caplog.messages if each.startswith("caller refused: ")]
    assert len(lines) == 2
    assert all(re.search(rf"UNAUTHENTICATED .*/WatchSessions caller=web key_id={key[5:27]} peer=ip", x) for x in lines)
    assert key[27:] not in caplog.text


async def test_a_role_that_is_taken_away(door: Door) -> None:
    """It takes the role `validate`; another one does not do."""
    key = door.new_key(Role.VALIDATE, Role.ISSUE)
    async with door.serving() as target, watching(target, key) as watch:
        door.callers.write_text(door.callers.read_text().replace("validate,issue", "issue"))
        assert await watch.refusal() == PERMISSION_DENIED


async def test_a_pattern_of_certificates_that_is_taken_out(door: Door) -> None:
    """The caller is known and has no role any more; one that another line names goes on."""
    ops, web = "ops validate dns:ops.test\n", "web validate uri:spiffe://test/web\n"
    door.callers.write_text(ops + web)
    async with (
        door.serving(mutual=True) as target,
        watching(target, client=CA.client(dns="ops.test")) as denied,
        watching(target, client=CA.client(uri="spiffe://test/web")) as good,
    ):
        door.callers.write_text(web)
        assert await denied.refusal() == PERMISSION_DENIED
        assert await good.is_open()


async def test_a_certificate_that_expires(door: Door) -> None:
    """Without any change of the file, from the moment on that it expires."""
    door.callers.write_text("ops validate dns:ops.test\n")
    lives_shortly = CA.client(dns="ops.test", lives=timedelta(seconds=3))
    async with (
        door.serving(mutual=True) as target,
        watching(target, client=lives_shortly) as watch,
        watching(target, client=CA.client(dns="ops.test")) as good,
    ):
        assert await watch.refusal() == UNAUTHENTICATED
        assert await good.is_open()


async def test_changes_that_concern_nobody(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Another key, another order, a role more, or a file that cannot be used: no stream notices."""
    caplog.set_level(logging.INFO, "catraca_server.api.callers")
    key = door.new_key(Role.VALIDATE)
    async with door.serving() as target, watching(target, key) as watch:

        async def changed(text: str, said: str) -> None:
            caplog.clear()
            door.callers.write_text(text)

            async def is_said() -> bool:
                return any(said in each for each in caplog.messages)

            await eventually_async(is_said, said)
            assert await watch.is_open()

        text = door.callers.read_text()
        other = door.new_key(Role.ADMIN, name="ops")
        await changed("\n".join(reversed(door.callers.read_text().splitlines())), "callers file reloaded")
        door.revoke(other)
        await changed(text.replace("validate", "validate,issue"), "callers file reloaded")
        await changed("nonsense", "callers file not reloaded")


async def test_one_who_does_not_read(door: Door) -> None:
    """A stream whose caller takes nothing in ends as well: no status gets past what is not taken."""
    key, issuing = door.new_key(Role.VALIDATE), door.new_key(Role.ISSUE)
    async with (
        door.serving() as target,
        watching(target, key),
        AsyncSessionClient(target, credentials=CA.channel_credentials(), api_key=issuing, timeout=20) as sessions,
    ):
        for _ in range(60):
            await asyncio.gather(*(sessions.create("u" * 250) for _ in range(10)))
        door.revoke(key)

        async def is_over() -> bool:
            return not any(task.get_name() == "watch-requests" for task in asyncio.all_tasks())

        await eventually_async(is_over, "the stream has ended")


async def test_the_command(door: Door) -> None:
    """`catraca watch` ends with 4, which is "not allowed", and says why."""
    key = door.new_key(Role.VALIDATE)
    async with door.serving() as target:
        settings = {"CATRACA_TARGET": target, "CATRACA_TLS_CA": str(door.ca), "CATRACA_API_KEY": key}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "catraca", "watch", "--output", "json", env=clean_environment(settings),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert b"opened" in await asyncio.wait_for(process.stdout.readline(), TIMEOUT_SECONDS)
        door.revoke(key)
        _, told = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)
        assert process.returncode == 4
        assert b"this server does not know who calls" in told


@pytest.mark.parametrize("kind", [SessionClient, AsyncSessionClient])
async def test_clients_whose_key_is_replaced_in_time(
    door: Door, tmp_path: Path, kind: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Near cache and `watch` go on with the new key, and miss nothing; with a revoked one `watch` says so."""
    kept = tmp_path / "client.key"
    kept.write_text(first := door.new_key(Role.VALIDATE, Role.ISSUE))
    async with door.serving() as target:
        made = kind(target, credentials=CA.channel_credentials(), api_key_file=kept, near_cache=True, timeout=20)
        async with closing(Client(made)) as sessions:
            login = await sessions.create("ana")

            async def is_hit() -> bool:
                before = made.near_cache_stats().hits
                assert await sessions.validate(login.token)
                return bool(made.near_cache_stats().hits > before)

            await eventually_async(is_hit, "the near cache answers")
            watch = made.watch()
            await _next(watch)  # opened
            _replace(kept, second := door.new_key(Role.VALIDATE, Role.ISSUE))

            async def uses_new() -> bool:
                return bool(made._channel._access.metadata()[0][1] == f"Bearer {second}")

            await eventually_async(uses_new, "the client uses the new key")
            door.revoke(first)
            assert type(await _next(watch)).__name__ == "WatchOpened"
            created = await sessions.create("bo")
            assert (await _next(watch)).session_id == created.session.session_id
            await eventually_async(is_hit, "the near cache answers again")
            assert "near cache off" not in caplog.text
            door.revoke(second)
            with pytest.raises(NotAllowed):
                await _next(watch)


async def _next(watch: Any) -> Any:
    if hasattr(watch, "__anext__"):
        return await asyncio.wait_for(anext(watch), TIMEOUT_SECONDS)
    return await asyncio.to_thread(next, watch)


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
