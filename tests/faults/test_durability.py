"""With `replica_acks`, what is acknowledged is on a replica; what is not is NOT_DURABLE, in time."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.support.cluster import Cluster
from tests.support.inprocess import serving
from tests.support.load import load_in_process
from tests.support.nodes import DataNode
from tests.support.operations import Service, service_on
from tests.support.sentinel import Sentinels
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, errors
from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import TokenInUse
from catraca_server.operations.users import Login
from catraca_server.store import NotDurable, StoreUnavailable

STORE_TIMEOUT_SECONDS = 0.25
MARGIN_SECONDS = 0.05
"""Within which a call has to end after the store's timeout."""

ATTEMPTS = 3
"""How often a call is measured, because the machine may be busy."""


@pytest.fixture
async def sentinels(valkey_sentinel: Sentinels) -> AsyncIterator[Sentinels]:
    """A primary and its replicas, empty and healthy."""
    await asyncio.to_thread(valkey_sentinel.renew)
    yield valkey_sentinel
    for node in valkey_sentinel.data:
        node.revive()


@pytest.fixture
async def service(sentinels: Sentinels) -> AsyncIterator[Service]:
    """Operations that wait for one replica."""
    async with service_on(sentinels.url, replica_acks="1") as made:
        yield made


def pause_replicas(sentinels: Sentinels) -> list[DataNode]:
    """Pauses both replicas."""
    replicas = sentinels.replicas
    for replica in replicas:
        replica.pause()
    return replicas


async def acknowledged(service: Service) -> None:
    """Waits until changes are acknowledged again."""

    async def is_acknowledged() -> bool:
        with contextlib.suppress(StoreUnavailable):
            return bool(await service.create())
        return False

    await eventually_async(is_acknowledged, "changes are acknowledged again")


WRITES: dict[str, Callable[[Service, Login], Awaitable[object]]] = {
    "create": lambda do, _: do.create(),
    "update": lambda do, login: do.operations.sessions.update(
        Update(login.stored.session.session_id, entries={"step": "1"}), do.call
    ),
    "extend": lambda do, login: do.operations.sessions.update(
        Update(
            login.stored.session.session_id, absolute_expire_time_ms=login.stored.session.absolute_expire_time_ms + 1000
        ),
        do.call,
    ),
    "rotate": lambda do, login: do.operations.sessions.rotate(login.token, do.call),
    "revoke by id": lambda do, login: do.revoke(login),
    "revoke by token": lambda do, login: do.operations.sessions.revoke_token(login.token, do.call),
    "revoke the user": lambda do, login: do.operations.users.revoke(login.stored.session.user_id, "", do.call),
}


async def test_changes_wait_for_a_replica_and_validations_do_not(service: Service, sentinels: Sentinels) -> None:
    """While all replicas are paused every change is NOT_DURABLE, in time, and validations are as fast as before."""
    logins = [await service.create(f"user-{number}") for number in range(2 * len(WRITES))]
    async with load_in_process(service, [(await service.create()).token]) as load:
        await load.go_on()
        replicas = pause_replicas(sentinels)
        paused = time.monotonic()
        for (name, write), login in zip(WRITES.items(), logins[: len(WRITES)], strict=True):
            durations = []
            for _ in range(ATTEMPTS):
                begun = time.monotonic()
                with pytest.raises(NotDurable):
                    await write(service, login)
                durations.append(time.monotonic() - begun)
                if durations[-1] <= STORE_TIMEOUT_SECONDS + MARGIN_SECONDS:
                    break
            assert min(durations) <= STORE_TIMEOUT_SECONDS + MARGIN_SECONDS, name
        await load.go_on()
        resumed = time.monotonic()
        for replica in replicas:
            replica.resume()
        for write, login in zip(WRITES.values(), logins[len(WRITES) :], strict=True):
            await acknowledged(service)
            await write(service, login)
        during, before = (
            statistics.median(each.seconds for each in load.outcomes if begun <= each.began < ended)
            for begun, ended in ((paused, resumed), (0, paused))
        )
        assert load.failures() == []
        assert during < max(3 * before, 0.02)
        assert service.changes == [True]
    for login in logins[4:7]:
        assert not await service.is_valid(login.token)


async def test_many_changes_at_once_fail_in_time(service: Service, sentinels: Sentinels) -> None:
    """A change that comes while another waits for replicas fails in time as well."""
    logins = [await service.create() for _ in range(40)]
    pause_replicas(sentinels)
    durations: list[float] = []
    raised: list[type[BaseException]] = []

    async def revoke(login: Login, after: float) -> None:
        await asyncio.sleep(after)
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await service.revoke(login)
        durations.append(time.monotonic() - begun)
        raised.append(caught.type)

    await asyncio.gather(*(revoke(login, number * 0.01) for number, login in enumerate(logins)))
    assert statistics.median(durations) <= STORE_TIMEOUT_SECONDS + MARGIN_SECONDS
    assert raised.count(NotDurable) > len(raised) / 2


async def test_activity_does_not_wait_for_replicas(sentinels: Sentinels) -> None:
    """A validation that touches a session, or drops a salt whose grace is over, is answered all the same."""
    async with service_on(sentinels.url, replica_acks="1", rotation_grace="100ms") as service:
        login = await service.create(idle_timeout_ms=20_000)
        rotation = await service.operations.sessions.rotate(login.token, service.call)
        key = f"session:{login.stored.session.session_id}"
        pause_replicas(sentinels)
        assert b'"salt"' in sentinels.command("GET", key)

        async def is_recorded() -> bool:
            before = sentinels.command("PEXPIRETIME", key)
            assert await service.is_valid(rotation.token)
            return b'"salt"' not in sentinels.command("GET", key) and sentinels.command("PEXPIRETIME", key) > before

        await eventually_async(is_recorded, "activity is recorded")


# Changes made by others


async def repeat_extension(service: Service, login: Login) -> None:
    """Makes the index last for a session, as it may already."""
    await service.stores.index.extend(login.stored.session, service.call)


async def bring_a_token(service: Service, login: Login) -> None:
    """Brings a token that an earlier call may have brought."""
    user_id = login.stored.session.user_id
    with contextlib.suppress(TokenInUse):
        await service.operations.users.create(NewSession(user_id, token="a-token-that-was-brought"), service.call)


REPEATED = {"extend": repeat_extension, "bring a token": bring_a_token} | {
    name: WRITES[name] for name in ("rotate", "revoke by id", "revoke by token", "revoke the user")
}


@pytest.mark.parametrize("write", REPEATED)
async def test_a_repeated_change_waits_for_replicas_as_well(write: str, sentinels: Sentinels) -> None:
    """A call that finds its change already made does not acknowledge it before a replica has it, on any server."""
    async with service_on(sentinels.url, replica_acks="1", store_timeout="1s") as first:
        login = await first.create()
        replicas = pause_replicas(sentinels)
        with pytest.raises(NotDurable):
            await REPEATED[write](first, login)
        async with service_on(sentinels.url, replica_acks="1", store_timeout="1s") as second:
            for _ in range(2):
                with pytest.raises(NotDurable):
                    await REPEATED[write](second, login)
            for replica in replicas:
                replica.resume()
            await acknowledged(second)
            await REPEATED[write](second, login)


async def test_an_end_that_a_failover_could_undo_stays_in_the_index(service: Service, sentinels: Sentinels) -> None:
    """Listing does not remove the entry of a session whose end no replica has: revoking all has to find it."""
    login = await service.create()
    replicas = pause_replicas(sentinels)
    with pytest.raises(NotDurable):
        await service.revoke(login)
    page = await service.operations.users.page("ana", None, 10, service.call)
    assert page.sessions == []
    with pytest.raises(NotDurable):
        await service.operations.users.revoke("ana", "", service.call)
    for replica in replicas:
        replica.resume()
    await acknowledged(service)
    assert await service.operations.users.revoke("ana", "", service.call) >= 1
    assert (await service.operations.users.page("ana", None, 10, service.call)).sessions == []


async def test_revoking_needs_no_memory(valkey: Valkey) -> None:
    """A session can be ended, however new it is, when the store has run out of memory."""
    valkey.command("FLUSHALL")
    async with service_on(valkey.url) as service:
        login = await service.create()
        valkey.command("CONFIG", "SET", "maxmemory", "1")
        try:
            assert await service.operations.sessions.revoke_token(login.token, service.call)
            assert not await service.is_valid(login.token)
            assert not await service.revoke(login)
        finally:
            valkey.command("CONFIG", "SET", "maxmemory", "0")


# No replicas, or other ones


async def test_without_replicas_nothing_is_durable(valkey: Valkey) -> None:
    """Without any replica changes are NOT_DURABLE over the wire, and validations go on."""
    valkey.command("FLUSHALL")
    async with (
        serving(store_url=valkey.url) as without,
        serving(store_url=valkey.url, replica_acks="1") as target,
        AsyncSessionClient(without, timeout=20) as writing,
        AsyncSessionClient(target, timeout=20) as sessions,
    ):
        login = await writing.create("ana")
        for call in (
            sessions.create("ana"),
            sessions.update(login.session.session_id, set_attributes={"step": "1"}),
            sessions.rotate(login.token),
            sessions.revoke(token=login.token),
        ):
            with pytest.raises(errors.Unavailable) as caught:
                await call
            assert caught.value.reason == "NOT_DURABLE"
        assert not await sessions.validate(login.token)


async def test_each_primary_of_a_cluster_has_its_own_replicas(valkey_cluster: Cluster) -> None:
    """If the replica of one primary is paused, sessions on the others are changed as before."""
    await asyncio.to_thread(valkey_cluster.renew)
    async with service_on(valkey_cluster.url, replica_acks="1") as service:
        one, *_ = valkey_cluster.primaries
        (replica,) = valkey_cluster.replicas_of(one)
        logins = [await service.create() for _ in range(20)]
        replica.pause()
        for login in logins:
            session_id = login.stored.session.session_id
            deletion = service.stores.sessions.delete(session_id, service.call)
            if valkey_cluster.node_of(f"session:{session_id}") is one:
                with pytest.raises(NotDurable):
                    await deletion
            else:
                assert await deletion
        assert not any(validation.stored for validation in await service.validate(*(login.token for login in logins)))
