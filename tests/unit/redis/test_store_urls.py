"""Store URLs: what they mean, what is refused and why, and that passwords in them stay hidden."""

import pickle
from typing import Any

import pytest
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from catraca_server.redis.dialer import Dialer, connection_to
from catraca_server.redis.url import HIDDEN, STORE_SCHEMES, Address, StoreKind, StoreUrl, hide_passwords
from catraca_server.settings import SettingsError, load

SECRET = "hunter2"


def refusal(url: str) -> str:
    """Returns why a URL is refused, which the settings report as well."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is under test
        StoreUrl.parse(url)
    with pytest.raises(SettingsError) as in_settings:
        load({}, {"CATRACA_STORE_URL": url})
    assert in_settings.value.problems == [f"CATRACA_STORE_URL {caught.value}"]
    return str(caught.value)


# One server


@pytest.mark.parametrize(
    ("url", "kind", "options"),
    [
        ("redis://", Connection, {"host": "localhost"}),
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
        (str(StoreUrl.at_socket("/a dir/a?b#c.sock")), UnixDomainSocketConnection, {"path": "/a dir/a?b#c.sock"}),
    ],
)
def test_what_a_url_of_one_server_means(url: str, kind: type, options: dict[str, Any]) -> None:
    """The kind of connection, the address, the user, and nothing else."""
    defaults = {"db": 0} if "path" in options else {"db": 0, "port": 6379}
    assert connection_to(StoreUrl.parse(url)) == (kind, {**defaults, **options})


def test_a_separate_password_overrides_the_one_in_the_url() -> None:
    """CATRACA_STORE_PASSWORD is for URLs that come from somewhere else."""
    assert Dialer(StoreUrl.parse("redis://ana:old@host"), password="new")._options["password"] == "new"


def test_certificates_are_checked_by_default() -> None:
    """TLS with an unknown server protects nothing."""
    checked = SSLConnection(**options_of("rediss://host")).ssl_context
    assert (checked.cert_reqs.name, checked.check_hostname) == ("CERT_REQUIRED", True)
    loose = SSLConnection(**options_of("rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false")).ssl_context
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
    """Each has a port."""
    assert StoreUrl.parse(url).addresses == tuple(addresses)


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
    group = StoreUrl.parse(url)
    assert (group.kind, group.primary_name) == (StoreKind.SENTINEL, "main")
    assert group.server(Address("h", 9)) == StoreUrl.parse(server)
    assert group.sentinel(Address("h", 9)) == StoreUrl.parse(sentinel)


def test_the_url_that_follows_from_one_of_a_cluster() -> None:
    """All nodes have the same user, password and TLS."""
    cluster = StoreUrl.parse("rediss+cluster://ana:pw@one:1,two:2/?ssl_ca_certs=/ca.pem")
    node = cluster.server(Address("::1", 9))
    assert node == StoreUrl.parse("rediss://ana:pw@[::1]:9/?ssl_ca_certs=/ca.pem")
    assert str(node) == f"rediss://ana:{HIDDEN}@[::1]:9/"


def test_sentinels_get_no_secret_of_the_servers() -> None:
    """Connections to them have neither the user nor the password of the servers."""
    sentinel = StoreUrl.parse(f"redis+sentinel://ana:{SECRET}@one:1/main").sentinel(Address("one", 1))
    assert connection_to(sentinel) == (Connection, {"host": "one", "port": 1, "db": 0})


@pytest.mark.parametrize("url", [f"redis+cluster://ana:{SECRET}@one:1", f"redis://ana:{SECRET}@one", "unix:///a.sock"])
def test_a_url_reaches_a_worker_unchanged(url: str) -> None:
    """It is sent with its password, which its text does not show."""
    parsed = StoreUrl.parse(url)
    received = pickle.loads(pickle.dumps(parsed))  # noqa: S301  made in the same line
    assert (received, received.password, str(received)) == (parsed, parsed.password, str(parsed))
    for node in (parsed, parsed.server(Address("h", 9))):
        assert SECRET not in f"{node} {node!r} {[node]}"


def options_of(url: str) -> dict[str, Any]:
    """Returns the options of a connection to a URL."""
    return connection_to(StoreUrl.parse(url))[1]


# Refusals


@pytest.mark.parametrize(
    ("url", "reason"),
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
        ("redis+sentinel://one:26379/main?db=one", "names no database by number"),
        ("redis+cluster://one:7000?socket_timeout=5&x=1", "options that mean nothing here (socket_timeout, x)"),
        ("redis+cluster://one:7000/2", "a cluster has only one"),
        ("redis+cluster://one:7000?db=0", "a cluster has only one"),
        ("redis://host/sessions", "names no database by number: write redis://host:6379/0"),
        ("redis://host?socket_timeout=5", "options that mean nothing here (socket_timeout)"),
        ("redis://host:port", "is not the URL of a Redis: write redis://host:6379/0"),
        ("redis://host:0", "is not the URL of a Redis"),
        ("redis://one:1,two:2", "is not the URL of a Redis"),
        ("redis://host?ssl_ca_certs=/ca.pem", "has options for TLS and does not use it: write rediss"),
        ("rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs that is not one of none, optional, required"),
        ("rediss://host?ssl_check_hostname=maybe", "ssl_check_hostname that is neither true nor false"),
        ("redis://host#0", "has a character in it that must be escaped"),
        ("unix://", "names no socket: write unix:///path/to/redis.sock"),
        ("unix://run/redis.sock", "names no socket: write unix:///path/to/redis.sock"),
        ("memory://", "says more than can be meant: write memory: and nothing after it"),
        ("embedded:/data", "says more than can be meant: write embedded: and nothing after it"),
    ],
)
def test_a_url_with_a_mistake(url: str, reason: str) -> None:
    """It is refused with what is wrong and what to write, before anything is connected to."""
    refused = refusal(url)
    assert reason in refused
    assert url in refused


@pytest.mark.parametrize("scheme", [scheme for scheme in STORE_SCHEMES if scheme not in ("embedded", "memory")])
def test_no_password_is_shown(scheme: str) -> None:
    """Neither by the settings, nor in an error, nor from a command line, however the URL is written."""
    for password in (SECRET, f"a{SECRET}/b", f"a@{SECRET}", f"a:{SECRET}", f"{SECRET}?a", f"{SECRET}#a", f"[{SECRET}"):
        for url in (f"{scheme}://ana:{password}@one:7000,two:7001/main?unknown=1", f"{scheme}://ana:{password}@one/1"):
            assert SECRET not in hide_passwords(url)
            with pytest.raises(SettingsError) as caught:
                load({"store_url": url}, {})
            assert SECRET not in str(caught.value)
    url = f"{scheme}://ana:{SECRET}@one:7000,two:7001/main?unknown=1"
    assert HIDDEN in refusal(url)
    assert SECRET not in refusal(url)


@pytest.mark.parametrize("password", [f"1?{SECRET}", f"1#{SECRET}", f"1/{SECRET}", f"1/?x={SECRET}"])
def test_a_password_that_ends_early_is_refused(password: str) -> None:
    """With characters that are not escaped, the user would be a host, and the password a database or an option."""
    refused = refusal(f"redis://ana:{password}@host")
    assert "must be escaped: write %23 for #" in refused
    assert SECRET not in refused


def test_settings_show_a_url_as_it_was_written() -> None:
    """Except for its password."""
    url = f"redis+sentinel://ana:{SECRET}@one:7000,two:7001/main?db=1"
    assert load({}, {"CATRACA_STORE_URL": url}).settings.shown()["store_url"] == url.replace(SECRET, HIDDEN)


@pytest.mark.parametrize("option", ["password", "sentinel_password"])
def test_no_password_is_shown_that_is_an_option(option: str) -> None:
    """Other clients accept it there; here it is refused, and not shown."""
    url = f"redis+sentinel://one:1/main?{option}={SECRET}&db=1"
    assert hide_passwords(url) == f"redis+sentinel://one:1/main?{option}={HIDDEN}&db=1"


@pytest.mark.parametrize(
    "url", ["redis://ana@host:6379/0", "unix:///a/b.sock", "rediss://host", "redis+cluster://[::1]:1,[::1]:2"]
)
def test_a_url_without_a_password_is_shown(url: str) -> None:
    """It stays as it is, and may be a flag."""
    assert hide_passwords(url) == url
    assert str(load({"store_url": url}, {}).settings.store_url) == url


@pytest.mark.parametrize("store_url", ["embedded:", "memory:"])
def test_replica_acks_need_a_store_with_replicas(store_url: str) -> None:
    """It is refused with a store that has none."""
    with pytest.raises(SettingsError, match=r"replica_acks 1 takes a store that has replicas"):
        load({"store_url": store_url, "replica_acks": "1"}, {})
