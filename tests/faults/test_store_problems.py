"""What is wrong with a real store: distinguished in the log and to the caller, for the operator who has to fix it."""

import pytest
from tests.support.operations import Service, service_on
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca_server.redis.errors import StoreProblem, StoreUnavailable


async def problem_of_a_login(service: Service) -> StoreProblem:
    """Returns why a login fails."""
    with pytest.raises(StoreUnavailable) as caught:
        await service.create()
    return caught.value.problem


async def test_a_full_store(own_valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """Logins fail with the reason; sessions are validated and revoked as before."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        login = await service.create()
        own_valkey.command("CONFIG", "SET", "maxmemory", "1")
        assert await problem_of_a_login(service) is StoreProblem.FULL
        assert "store refused a command: full: OOM command not allowed" in caplog.text
        assert await service.is_valid(login.token)
        assert await service.revoke(login)
        own_valkey.command("CONFIG", "SET", "maxmemory", "0")
        await service.create()


async def test_a_store_that_accepts_no_writes(own_valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """It has too few replicas for its configuration, which is not the same as being a replica."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        login = await service.create()
        own_valkey.command("CONFIG", "SET", "min-replicas-to-write", "1")
        assert await problem_of_a_login(service) is StoreProblem.READ_ONLY
        assert "store refused a command: read-only: NOREPLICAS" in caplog.text
        assert await service.is_valid(login.token)


async def test_a_store_that_becomes_a_replica(own_valkey: Valkey) -> None:
    """It is noticed at the next write."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        own_valkey.command("REPLICAOF", "127.0.0.1", "1")
        assert await problem_of_a_login(service) in (StoreProblem.NOT_PRIMARY, StoreProblem.REFUSED)


async def test_a_user_without_a_permission(own_valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """The store refuses the command, and the log says why."""
    own_valkey.command("ACL", "SETUSER", "limited", "on", ">word", "~*", "+@all", "-eval")
    url = own_valkey.url.replace("unix://", "unix://limited:word@")
    async with service_on(url, store_timeout="5s") as service:
        assert await problem_of_a_login(service) is StoreProblem.REFUSED
        assert "store refused a command: refused: NOPERM" in caplog.text


async def test_a_store_that_stops_and_one_that_stalls(own_valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """One cannot be connected to, the other does not reply in time."""
    async with service_on(own_valkey.url, store_timeout="250ms") as service:
        login = await service.create()
        own_valkey.pause()
        with pytest.raises(StoreUnavailable) as caught:
            await service.validate(login.token)
        assert caught.value.problem is StoreProblem.NOT_IN_TIME
        own_valkey.resume()
        await service.recovered(login.token)
        own_valkey.kill()
        with pytest.raises(StoreUnavailable) as caught:
            await service.validate(login.token)
        assert caught.value.problem is StoreProblem.CANNOT_CONNECT

        async def is_logged() -> bool:
            return "store disconnected: cannot connect: " in caplog.text

        await eventually_async(is_logged, "it is logged")
        assert "store connection closed: disconnected: " in caplog.text
