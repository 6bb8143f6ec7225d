"""Store URLs: what they say, what is refused and why, and that passwords in them stay hidden."""

from typing import Any

import pytest
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from catraca_server.redis.dialer import Address, Dialer, Group, StoreRefused, unix_url
from catraca_server.redis.open import linked
from catraca_server.settings import HIDDEN, STORE_SCHEMES, SettingsError, load, without_password

SECRET = "hunter2"


def made(url: str, **fields: str) -> tuple[type, dict[str, Any]]:
    """Returns which connection a URL means, and with what."""
    dialer = Dialer(url, **fields)
    return dialer._class, dialer._options


async def refusal(url: str) -> str:
    """Returns why the service does not start with a URL."""
    with pytest.raises(StoreRefused) as caught:
        async with linked(url, load({}, {}).settings, lambda _: None):
            pass
    return str(caught.value)


# One server


@pytest.mark.parametrize(
    ("url", "kind", "options"),
    [
        ("redis://", Connection, {}),
        ("redis://host", Connection, {"host": "host"}),
        ("redis://[::1]:7000/3", Connection, {"host": "::1", "port": 7000, "db": 3}),
        ("redis://host/?db=3", Connection, {"host": "host", "db": 3}),
        ("redis://ana:a%2Fb@host", Connection, {"host": "host", "username": "ana", "password": "a/b"}),
        ("rediss://host", SSLConnection, {"host": "host"}),
        (
            "rediss://host?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_check_hostname=false",
            SSLConnection,
            {
                "host": "host",
                "ssl_ca_certs": "/ca.pem",
                "ssl_certfile": "/c.pem",
                "ssl_keyfile": "/k.pem",
                "ssl_check_hostname": False,
            },
        ),
        ("unix:///run/redis.sock?db=1", UnixDomainSocketConnection, {"path": "/run/redis.sock", "db": 1}),
        (unix_url("/a dir/a?b#c.sock"), UnixDomainSocketConnection, {"path": "/a dir/a?b#c.sock"}),
    ],
)
def test_what_a_url_of_one_server_says(url: str, kind: type, options: dict[str, Any]) -> None:
    """The kind of connection, where to, as whom, and nothing that was not asked for."""
    assert made(url) == (kind, options)


def test_a_password_of_its_own_goes_before_one_in_the_url() -> None:
    """CATRACA_STORE_PASSWORD is for who has the URL from somewhere else."""
    assert made("redis://ana:old@host", password="new")[1]["password"] == "new"


def test_certificates_are_checked_unless_told_otherwise() -> None:
    """TLS that does not say whom it talks to is none."""
    checked = SSLConnection(**made("rediss://host")[1]).ssl_context
    assert (checked.cert_reqs.name, checked.check_hostname) == ("CERT_REQUIRED", True)
    loose = SSLConnection(**made("rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false")[1]).ssl_context
    assert (loose.cert_reqs.name, loose.check_hostname) == ("CERT_NONE", False)


# Several servers


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("redis+cluster://one:7000", [Address("one", 7000)]),
        ("redis+cluster://one:7000,two:7001/", [Address("one", 7000), Address("two", 7001)]),
        ("redis+cluster://ana:a:b@one:7000", [Address("one", 7000)]),
        ("redis+cluster://[::1]:7000,[2001:db8::1]:7001", [Address("::1", 7000), Address("2001:db8::1", 7001)]),
    ],
)
def test_the_servers_that_a_url_names(url: str, addresses: list[Address]) -> None:
    """As many as it has, each with its port."""
    assert Group.read(url).addresses == addresses


@pytest.mark.parametrize(
    ("url", "server", "sentinel"),
    [
        ("redis+sentinel://one:1,two:2/main", "redis://h:9/", "redis://h:9/"),
        ("redis+sentinel://ana:pw@one:1/main?db=2", "redis://ana:pw@h:9/?db=2", "redis://h:9/"),
        (
            "rediss+sentinel://:p%40w@one:1/main?ssl_ca_certs=/ca.pem&db=2&ssl_check_hostname=false",
            "rediss://:p%40w@h:9/?ssl_ca_certs=/ca.pem&db=2&ssl_check_hostname=false",
            "rediss://h:9/?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
        ),
    ],
)
def test_the_urls_that_follow_from_one_of_sentinels(url: str, server: str, sentinel: str) -> None:
    """User, password and database are those of the servers; TLS is for the Sentinels as well."""
    group = Group.read(url)
    assert group.name == "main"
    assert (group.url(Address("h", 9)), group.sentinel_url(Address("h", 9))) == (server, sentinel)


def test_the_url_that_follows_from_one_of_a_cluster() -> None:
    """All nodes have the same user, password and TLS."""
    group = Group.read("rediss+cluster://ana:pw@one:1,two:2/?ssl_ca_certs=/ca.pem")
    assert group.url(Address("::1", 9)) == "rediss://ana:pw@[::1]:9/?ssl_ca_certs=/ca.pem"
    kind, options = made(group.url(Address("::1", 9)))
    assert kind is SSLConnection
    assert options == {"host": "::1", "port": 9, "username": "ana", "password": "pw", "ssl_ca_certs": "/ca.pem"}


def test_a_group_does_not_show_its_password() -> None:
    """Not even when somebody prints it."""
    assert SECRET not in repr(Group.read(f"redis+cluster://ana:{SECRET}@one:1"))


# Refusals


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis+sentinel:///main", "names no servers: write redis+sentinel://host:port,host:port"),
        ("rediss+cluster://", "names no servers: write rediss+cluster://host:port,host:port"),
        ("redis+cluster://one", "names no servers"),
        ("redis+cluster://one:", "names no servers"),
        ("redis+cluster://:7000", "names no servers"),
        ("redis+cluster://one:7000,", "names no servers"),
        ("redis+cluster://one:7000,two", "names no servers"),
        ("redis+cluster://one:http", "names no servers"),
        ("redis+cluster://one:0", "names no servers"),
        ("redis+cluster://one:65536", "names no servers"),
        ("redis+sentinel://one:26379", "names no primary: write redis+sentinel://host:port,host:port/NAME"),
        ("redis+sentinel://one:26379/", "names no primary"),
        ("redis+sentinel://one:26379/main/2", "?db=1 for another database"),
        ("redis+sentinel://one:26379/main?timeout=1", "options that mean nothing here (timeout)"),
        ("redis+sentinel://one:26379/main?db=one", "is no URL of a Redis"),
        ("redis+cluster://one:7000?socket_timeout=5&x=1", "options that mean nothing here (socket_timeout, x)"),
        ("redis+cluster://one:7000/2", "a cluster has only one"),
        ("redis+cluster://one:7000?db=0", "a cluster has only one"),
    ],
)
async def test_a_url_of_several_servers_with_a_mistake(url: str, told: str) -> None:
    """It is refused with what is wrong and how it should be, before anybody is asked for anything."""
    said = await refusal(url)
    assert told in said
    assert url in said


@pytest.mark.parametrize("scheme", [scheme for scheme in STORE_SCHEMES if scheme not in ("embedded", "memory")])
async def test_no_password_is_shown(scheme: str) -> None:
    """Not in the settings, not in a refusal, and not from a command line, however it is written."""
    for password in (SECRET, f"a{SECRET}/b", f"a@{SECRET}", f"a:{SECRET}", f"{SECRET}?a", f"{SECRET}#a", f"[{SECRET}"):
        url = f"{scheme}://ana:{password}@one:7000,two:7001/main?unknown=1"
        assert SECRET not in without_password(url)
        with pytest.raises(SettingsError) as caught:
            load({"store_url": url}, {})
        assert SECRET not in str(caught.value)
    url = f"{scheme}://ana:{SECRET}@one:7000,two:7001/main?unknown=1"
    assert load({}, {"CATRACA_STORE_URL": url}).settings.shown()["store_url"] == url.replace(SECRET, HIDDEN)
    assert HIDDEN in await refusal(url)
    assert SECRET not in await refusal(url)


@pytest.mark.parametrize("option", ["password", "sentinel_password"])
def test_no_password_is_shown_that_is_an_option(option: str) -> None:
    """What other clients take there is refused here, without showing it."""
    url = f"redis+sentinel://one:1/main?{option}={SECRET}&db=1"
    assert without_password(url) == f"redis+sentinel://one:1/main?{option}={HIDDEN}&db=1"


@pytest.mark.parametrize(
    "url", ["redis://ana@host:6379/0", "unix:///a/b.sock", "rediss://host", "redis+cluster://[::1]:1,[::1]:2"]
)
def test_what_is_no_password_is_shown(url: str) -> None:
    """A URL without one stays as it is, and may stand on a command line."""
    assert without_password(url) == url
    assert load({"store_url": url}, {}).settings.store_url == url


@pytest.mark.parametrize("store_url", ["embedded:", "memory:"])
def test_replicas_that_cannot_be(store_url: str) -> None:
    """Who asks for acknowledgements of replicas with a store that has none is told so at once."""
    with pytest.raises(SettingsError, match=r"replica_acks 1 takes a store that has replicas"):
        load({"store_url": store_url, "replica_acks": "1"}, {})


def test_sentinels_are_told_no_secret_of_the_servers() -> None:
    """What they are connected with has neither the user nor the password of the servers."""
    group = Group.read(f"redis+sentinel://ana:{SECRET}@one:1/main")
    assert made(group.sentinel_url(Address("one", 1))) == (Connection, {"host": "one", "port": 1})
