"""Connecting: the error of a server that refuses it."""

from pathlib import Path

import pytest
from tests.support.fake_redis import FakeRedis

from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.errors import StoreRefused
from catraca_server.redis.url import StoreUrl

SECRET = "hunter2"


async def test_the_error_of_an_unknown_auth_does_not_show_the_password(tmp_path: Path) -> None:
    """Redis quotes the arguments of an unknown command, and those of AUTH are secret."""
    quoting = b"-ERR unknown command 'AUTH', with args beginning with: 'ana' '%s' \r\n" % SECRET.encode()
    async with FakeRedis(tmp_path / "fake.sock", lambda command: quoting if command[0] == b"AUTH" else None) as fake:
        with pytest.raises(StoreRefused, match="unknown command 'AUTH'") as caught:
            await RedisConnector(StoreUrl.parse(fake.url.replace("unix://", f"unix://ana:{SECRET}@")))()
    assert SECRET not in str(caught.value)
