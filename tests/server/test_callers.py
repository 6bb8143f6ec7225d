"""Who may call what: every RPC, every role, every way to be known or not to be, and credentials that change."""

import logging
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tests.support.certificates import Authority, Issued
from tests.support.command import catraca
from tests.support.door import CA, Door
from tests.support.repeating import repeating
from tests.support.service import ServeProcess
from tests.support.waiting import eventually_async
from tests.support.wire import Refusal, refusal_of

from catraca import AsyncSessionClient, SessionClient
from catraca.errors import NotAllowed
from catraca_server import callers_file
from catraca_server.api.handlers import METHOD_ROLES, SERVICE_NAME
from catraca_server.domain.call import Caller, Role
from catraca_server.domain.callers import DnsPattern, Entry, UriPattern, new_key

EXPIRED = timedelta(days=1)
STRANGER = Authority("another authority")
NOT_A_MESSAGE = b"\xff"
Code = grpc.StatusCode
UNAUTHENTICATED: Refusal = (Code.UNAUTHENTICATED, "UNAUTHENTICATED", [])
PERMISSION_DENIED: Refusal = (Code.PERMISSION_DENIED, "PERMISSION_DENIED", [])
LET_IN: Refusal = (Code.INVALID_ARGUMENT, "INVALID_REQUEST", [])
"""The handler was reached: it alone knows that the body is not a message."""


async def end_of(channel: grpc.aio.Channel, path: str, header: str | None = None) -> Refusal:
    """Calls a method with what is not a message, and returns how it ends."""
    metadata = () if header is None else (("authorization", header),)
    # On the wire any call is a stream. Not `stream_stream`: if the refusal comes before it has sent, it says INTERNAL.
    method: Any = channel.unary_stream(path)
    call = method(NOT_A_MESSAGE, metadata=metadata, timeout=10)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        if error.code() is Code.UNIMPLEMENTED:
            return error.code(), "", []
        return refusal_of(error)
    return await call.code(), "", []


def channel_to(target: str, client: Issued | None = None, authority: Authority = CA) -> grpc.aio.Channel:
    """Returns a connection of its own over TLS."""
    # By default gRPC shares connections of the same credentials.
    return grpc.aio.secure_channel(
        target, authority.channel_credentials(client), [("grpc.use_local_subchannel_pool", 1)]
    )


async def served(channel: grpc.aio.Channel, header: str | None = None) -> Mapping[str, Role]:
    """Returns the methods that are served, with their roles; for a caller that has all of them."""
    found = {}
    for path, role in METHOD_ROLES.items():
        code, *_ = await end_of(channel, path, header)
        if code is not Code.UNIMPLEMENTED:
            found[path] = role
    return found


async def assert_lets_in(
    channel: grpc.aio.Channel, roles: frozenset[Role], methods: Mapping[str, Role], header: str | None = None
) -> None:
    """Asserts that exactly the methods of these roles are reached."""
    for path, role in methods.items():
        assert await end_of(channel, path, header) == (LET_IN if role in roles else PERMISSION_DENIED), (path, roles)


ROLE_SETS = [
    frozenset[Role](),
    *(frozenset({role}) for role in Role),
    frozenset({Role.VALIDATE, Role.ISSUE}),
    frozenset(Role),
]


async def test_every_method_and_role_with_keys(door: Door) -> None:
    """A key gives its roles and no others. Without a valid one no method is reached, whatever the body is."""
    keys = {roles: door.new_key(*roles) for roles in ROLE_SETS if roles}
    revoked, unknown = door.new_key(*Role), new_key(secrets.token_bytes)[0]
    door.revoke(revoked)
    good = keys[frozenset(Role)]
    forged = unknown[:5] + good[5:27] + unknown[27:]
    async with door.serving() as target, channel_to(target) as channel:
        methods = await served(channel, f"Bearer {good}")
        assert len(methods) >= 9
        for roles, key in keys.items():
            await assert_lets_in(channel, roles, methods, f"Bearer {key}")
        for path in methods:
            for wrong in (None, revoked, unknown, forged, good[:-1], good.upper(), ""):
                assert await end_of(channel, path, wrong and f"Bearer {wrong}") == UNAUTHENTICATED
            for wrong in (good, f"Digest {good}", f"Basic {good}", "Bearer", f"Bearer{good}", f"Bearer {good} {good}"):
                assert await end_of(channel, path, wrong) == UNAUTHENTICATED
            for other in (f"bearer {good}", f"BEARER  {good}"):
                assert await end_of(channel, path, other) == LET_IN


async def test_every_method_and_role_with_certificates(door: Door) -> None:
    """A certificate gives the roles of the first line that it matches; one that matches none gives none."""
    lines = [
        Entry(Caller(f"c{at}", roles), UriPattern(f"spiffe://test/*/c{at}"))
        for at, roles in enumerate(ROLE_SETS)
        if roles
    ]
    lines += [Entry(Caller("ops", frozenset({Role.ADMIN})), DnsPattern("ops.test"))]
    door.callers.write_text("".join(f"{callers_file.line_of(each)}\n" for each in lines))
    async with door.serving(mutual=True) as target:
        async with channel_to(target, CA.client(uri=f"spiffe://test/ns/c{len(ROLE_SETS) - 1}")) as channel:
            methods = await served(channel)
        for at, roles in enumerate(ROLE_SETS):
            async with channel_to(target, CA.client(uri=f"spiffe://test/ns/c{at}")) as channel:
                await assert_lets_in(channel, roles, methods)
        async with channel_to(target, CA.client(dns="ops.test", uri="spiffe://elsewhere/c1")) as channel:
            await assert_lets_in(channel, frozenset({Role.ADMIN}), methods)
        # Names of another kind are not DNS names, nor is the common name.
        for nobody in (CA.client(email="ops.test"), CA.client(name="ops.test"), CA.client(dns="ops.test.evil")):
            async with channel_to(target, nobody) as channel:
                await assert_lets_in(channel, frozenset(), methods)


async def test_certificates_that_are_none_of_the_authority(door: Door) -> None:
    """They do not get as far as a call."""
    door.callers.write_text("ops validate,issue,admin dns:ops.test\n")
    async with door.serving(mutual=True) as target:
        for wrong in (None, STRANGER.client(dns="ops.test"), CA.client(dns="ops.test", lives=-EXPIRED)):
            async with channel_to(target, wrong) as channel:
                call: Any = channel.unary_unary(f"/{SERVICE_NAME}/GetSession")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(NOT_A_MESSAGE, timeout=5)
                assert caught.value.code() is Code.UNAVAILABLE


async def test_a_certificate_that_expires(door: Door) -> None:
    """Calls are refused from then on, on a connection that it opened while it was valid, too."""
    door.callers.write_text("ops validate,issue,admin dns:ops.test\n")
    path = f"/{SERVICE_NAME}/GetSession"
    issued = CA.client(dns="ops.test", lives=timedelta(seconds=3))
    async with door.serving(mutual=True) as target, channel_to(target, issued) as channel:
        assert await end_of(channel, path) == LET_IN

        async def is_refused() -> bool:
            return await end_of(channel, path) == UNAUTHENTICATED

        await eventually_async(is_refused, "the certificate has expired")


async def test_refused_callers_are_in_the_log(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """With the id of the key that they presented, by which a revoked one can be found, and not the key."""
    valid, revoked = door.new_key(Role.VALIDATE), door.new_key(*Role)
    door.revoke(revoked)
    path = f"/{SERVICE_NAME}/GetSession"
    async with door.serving() as target, channel_to(target) as channel:
        for header in (None, f"Bearer {revoked}", f"Bearer {valid}", "Bearer nonsense"):
            await end_of(channel, path, header)
    lines = [each for each in caplog.messages if each.startswith("caller refused: ")]
    found = [re.fullmatch(rf"caller refused: (.*) method={path} (.*) peer=ipv\S+", each) for each in lines]
    assert [each and (each[1], each[2]) for each in found] == [
        ("reason=UNAUTHENTICATED", "caller=- key_id=-"),
        ("reason=UNAUTHENTICATED", f"caller=- key_id={revoked[5:27]}"),
        ("reason=PERMISSION_DENIED", f"caller=web key_id={valid[5:27]}"),
        ("reason=UNAUTHENTICATED", "caller=- key_id=-"),
    ]
    assert revoked[27:] not in caplog.text
    assert valid[27:] not in caplog.text


async def test_without_mutual_tls_a_certificate_is_nothing(door: Door) -> None:
    """The server did not ask for it, and nobody has checked it."""
    door.callers.write_text("ops validate,issue,admin dns:ops.test\n")
    async with door.serving() as target, channel_to(target, CA.client(dns="ops.test")) as channel:
        for path in METHOD_ROLES:
            assert (await end_of(channel, path))[0] in (Code.UNAUTHENTICATED, Code.UNIMPLEMENTED)


async def test_a_key_over_mutual_tls(door: Door) -> None:
    """If there is a key, it alone counts: a certificate adds nothing, and does not stand in for a revoked key."""
    door.callers.write_text("ops admin dns:ops.test\n")
    key, revoked = door.new_key(Role.VALIDATE), door.new_key(*Role)
    door.revoke(revoked)
    async with door.serving(mutual=True) as target, channel_to(target, CA.client(dns="ops.test")) as channel:
        validate, get = f"/{SERVICE_NAME}/ValidateSession", f"/{SERVICE_NAME}/GetSession"
        assert await end_of(channel, validate, f"Bearer {key}") == LET_IN
        assert await end_of(channel, get, f"Bearer {key}") == PERMISSION_DENIED
        assert await end_of(channel, get) == LET_IN
        assert await end_of(channel, get, f"Bearer {revoked}") == UNAUTHENTICATED


async def test_two_keys_in_one_call(door: Door) -> None:
    """Nobody can say which one counts, so none does."""
    key = door.new_key(*Role)
    async with door.serving() as target, channel_to(target) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE_NAME}/GetSession")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(NOT_A_MESSAGE, metadata=(("authorization", f"Bearer {key}"),) * 2, timeout=5)
        assert refusal_of(caught.value) == UNAUTHENTICATED


async def test_health_and_reflection_need_no_role(door: Door) -> None:
    """Probes and grpcurl have no key."""
    async with door.serving() as target, channel_to(target) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=5) == b"\x08\x01"
        reflect: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        assert SERVICE_NAME.encode() in await reflect(iter([b"\x3a\x00"]), timeout=5).read()


async def test_a_large_request_of_a_stranger_is_not_read(door: Door) -> None:
    """The refusal comes all the same, whatever is still on its way."""
    async with door.serving() as target, channel_to(target) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE_NAME}/BatchValidateSessions")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bytes(7 << 20), timeout=10)
        assert refusal_of(caught.value) == UNAUTHENTICATED


def test_the_protos_say_the_same_roles() -> None:
    """Each RPC's comment names the role that the server asks for, and each RPC has one."""
    data = (resources("catraca.v1") / "descriptors.binpb").read_bytes()
    said = {}
    for file in FileDescriptorSet.FromString(data).file:
        for at, service in enumerate(file.service):
            for location in file.source_code_info.location:
                if len(location.path) == 4 and list(location.path[:3]) == [6, at, 2]:
                    name = service.method[location.path[3]].name
                    (role,) = re.findall(r"^ Role: `(\w+)`\.", location.leading_comments, re.MULTILINE)
                    said[f"/{file.package}.{service.name}/{name}"] = Role(role)
    assert said == METHOD_ROLES


async def test_a_changed_file_is_in_force_soon(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """On open connections too: a new key, a revoked one. A file with faults changes nothing, and is logged."""
    caplog.set_level(logging.INFO, "catraca_server.api.callers")
    path = f"/{SERVICE_NAME}/ValidateSession"
    first = door.new_key(Role.VALIDATE)

    async def becomes(channel: grpc.aio.Channel, key: str, expected: object) -> None:
        async def is_so() -> bool:
            return await end_of(channel, path, f"Bearer {key}") == expected

        await eventually_async(is_so, f"{expected}")

    async with door.serving() as target, channel_to(target) as channel:
        await becomes(channel, first, LET_IN)
        second = door.new_key(Role.VALIDATE)
        await becomes(channel, second, LET_IN)
        assert await end_of(channel, path, f"Bearer {first}") == LET_IN, "both are valid for a while"
        door.revoke(first)
        await becomes(channel, first, UNAUTHENTICATED)
        text = door.callers.read_text()
        for broken, why in (("nonsense", "line 1"), (None, "cannot be read")):
            caplog.clear()
            if broken is None:
                door.callers.unlink()
            else:
                door.callers.write_text(broken)
            await eventually_async(lambda why=why: _logged(caplog, why), "it is logged")  # type: ignore[misc]
            assert await end_of(channel, path, f"Bearer {second}") == LET_IN
        door.callers.write_text(text.replace("validate", "issue"))
        await becomes(channel, second, PERMISSION_DENIED)
    assert first[27:] not in caplog.text
    assert second[27:] not in caplog.text


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) <= 1
    return any(line.startswith("callers file not reloaded") and text in line for line in lines)


async def test_keys_are_rotated_while_calls_go_on(door: Door, tmp_path: Path) -> None:
    """Make one, give it to the client, revoke the old one: no call fails, and nothing is restarted."""
    kept = tmp_path / "client.key"
    kept.write_text(key := door.new_key(Role.VALIDATE, Role.ISSUE))
    async with (
        door.serving() as target,
        AsyncSessionClient(target, credentials=CA.channel_credentials(), api_key_file=kept, timeout=10) as sessions,
        channel_to(target) as channel,
    ):
        token = (await sessions.create("12345")).token
        async with repeating(lambda: sessions.validate(token)) as calls:
            for _ in range(2):
                new = door.new_key(Role.VALIDATE)

                async def let_in(key: str = new, expected: object = LET_IN) -> bool:
                    return await end_of(channel, f"/{SERVICE_NAME}/ValidateSession", f"Bearer {key}") == expected

                await eventually_async(let_in, "the new key is valid")
                _replace(kept, new)

                async def uses_new(new: str = new) -> bool:
                    metadata = sessions._channel._access.metadata()
                    return metadata is not None and metadata[0][1] == f"Bearer {new}"

                await eventually_async(uses_new, "the client uses the new key")
                await calls.go_on()
                door.revoke(key)

                async def refused(key: str = key) -> bool:
                    return await let_in(key, UNAUTHENTICATED)

                await eventually_async(refused, "the old key is refused")
                await calls.go_on()
                key = new
        assert calls.failures == []


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_clients_and_what_they_may_not(door: Door) -> None:
    """A caller without a role gets NotAllowed, with the reason, also for validations that come together."""
    validate, nothing = door.new_key(Role.VALIDATE), new_key(secrets.token_bytes)[0]
    async with door.serving() as target:

        def client(key: str) -> AsyncSessionClient:
            return AsyncSessionClient(target, credentials=CA.channel_credentials(), api_key=key, timeout=10)

        async with client(validate) as sessions:
            assert not await sessions.validate("a-token-of-nobody")
            with pytest.raises(NotAllowed, match="needs the role issue") as denied:
                await sessions.create("12345")
            assert denied.value.reason == "PERMISSION_DENIED"
        async with client(nothing) as sessions:
            with pytest.raises(NotAllowed, match="does not know who calls") as refused:
                await sessions.validate("a-token-of-nobody")
            assert refused.value.reason == "UNAUTHENTICATED"
            assert nothing[27:] not in str(refused.value)


def test_a_start_without_the_callers_file(door: Door) -> None:
    """The service ends, and says how the file is made."""
    done = catraca("serve", environment={"CATRACA_STORE_URL": "memory:", "CATRACA_CALLERS_FILE": f"{door.callers}2"})
    assert done.returncode == 3
    assert "cannot be read: No such file or directory. It is set by CATRACA_CALLERS_FILE" in done.stderr
    assert "catraca keys new" in done.stderr


def test_callers_are_known_on_loopback_too(door: Door) -> None:
    """With a callers file nobody is let in without a credential, wherever it listens; without one everybody is."""
    key = door.new_key(*Role)
    with ServeProcess(store_url="memory:", callers_file=str(door.callers)) as service:
        with SessionClient(service.target, timeout=10) as nobody, pytest.raises(NotAllowed):
            nobody.create("12345")
        with SessionClient(service.target, timeout=10, api_key=key) as sessions:
            assert sessions.validate(sessions.create("12345").token)
