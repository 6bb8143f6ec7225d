"""Settings: where they come from, what is refused, and that secrets stay hidden."""

import time
from pathlib import Path

import pytest

from catraca_server.domain.session import Session
from catraca_server.redis.url import HIDDEN
from catraca_server.setting_values import Duration
from catraca_server.settings import SETTINGS, Loaded, Settings, SettingsError, load
from catraca_server.store.records import decode, encode


def problems(flags: dict[str, str] | None = None, environment: dict[str, str] | None = None) -> list[str]:
    """Returns the problems of settings that cannot be used."""
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, environment or {})
    return caught.value.problems


def test_without_anything_set_the_defaults_hold() -> None:
    """These are the documented ones, and no setting has an origin."""
    loaded = load({}, {})
    assert loaded == Loaded(Settings(), {}, ())
    assert loaded.settings.host == "127.0.0.1"
    assert loaded.settings.port == 50051
    assert str(loaded.settings.store_url) == "embedded:"
    assert loaded.settings.store_timeout == Duration(250)
    assert loaded.settings.default_ttl == Duration(86_400_000)
    assert loaded.settings.default_idle_timeout == Duration(1_800_000)
    assert loaded.settings.max_ttl == Duration(30 * 86_400_000)


def test_flag_goes_before_environment_before_file(tmp_path: Path) -> None:
    """Each source yields to the one before it, setting by setting, and the origin is known."""
    file = tmp_path / "catraca.toml"
    file.write_text('port = 1\nkey_prefix = "file:"\nlog_level = "debug"\nreflection = false\n')
    loaded = load(
        {"port": "3"}, {"CATRACA_CONFIG": str(file), "CATRACA_PORT": "2", "CATRACA_KEY_PREFIX": "environment:"}
    )
    assert (loaded.settings.port, loaded.settings.key_prefix) == (3, "environment:")
    assert (loaded.settings.log_level, loaded.settings.reflection) == ("debug", False)
    assert loaded.origins == {
        "port": "flag",
        "key_prefix": "CATRACA_KEY_PREFIX",
        "log_level": "file",
        "reflection": "file",
    }


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("250ms", 250), ("30s", 30_000), ("15m", 900_000), ("24h", 86_400_000), ("30d", 2_592_000_000), ("0s", 0)],
)
def test_durations_are_read_and_written(text: str, milliseconds: int) -> None:
    """A whole number and a unit; the text of a duration is read as the same duration."""
    assert Duration.parse(text) == Duration(milliseconds)
    assert Duration.parse(str(Duration(milliseconds))) == Duration(milliseconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "1.5s",
        "-1s",
        "1 s",
        "s",
        "1w",
        "1S",
        "١s",  # noqa: RUF001  an Arabic digit, which a careless pattern takes
        "9999999999999s",
    ],
)
def test_what_is_not_a_duration(text: str) -> None:
    """It is refused with examples."""
    with pytest.raises(ValueError, match="250ms"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "http"),
        ("store_url", "mysql://somewhere"),
        ("store_url", "localhost:6379"),
        ("store_url", "redis://["),
        ("store_timeout", "0s"),
        ("default_ttl", "0s"),
        ("max_ttl", "forever"),
        ("workers", "0"),
        ("workers", "129"),
        ("workers", "two"),
        ("max_connection_age", "25h"),
        ("max_calls_per_connection", "-1"),
        ("insecure", "maybe"),
        ("log_format", "xml"),
    ],
)
def test_each_problem_names_the_flag_or_variable(name: str, value: str) -> None:
    """As it was given, so that it can be found."""
    (flag_problem,) = problems({name: value})
    assert flag_problem.startswith(f"--{name.replace('_', '-')} ")
    (variable_problem,) = problems(environment={f"CATRACA_{name.upper()}": value})
    assert variable_problem.startswith(f"CATRACA_{name.upper()} ")


def test_all_problems_are_reported_at_once() -> None:
    """Nobody has to start five times to find five mistakes."""
    found = problems({"port": "x", "log_format": "xml"}, {"CATRACA_STORE_URL": "ftp://x"})
    assert len(found) == 3


def test_a_file_with_unknown_keys_or_syntax_errors_is_refused(tmp_path: Path) -> None:
    """A misspelt key in a file that was written for catraca is a mistake."""
    file = tmp_path / "catraca.toml"
    file.write_text("prot = 1\n")
    assert "prot" in problems({"config": str(file)})[0]
    file.write_text("port: 1\n")
    assert "cannot be read" in problems({"config": str(file)})[0]
    assert "cannot be read" in problems({"config": str(tmp_path / "none.toml")})[0]


def test_unknown_variables_are_warnings() -> None:
    """They may belong to other programs, so the service starts all the same; the client's own are known."""
    loaded = load({}, {"CATRACA_PROT": "1", "CATRACA_TARGET": "x", "CATRACA_API_KEY": "k", "OTHER": "y"})
    assert loaded.warnings == ("CATRACA_PROT is not a setting of catraca and has no effect",)


def test_service_links_of_kubernetes_are_not_settings() -> None:
    """Kubernetes gives pods CATRACA_PORT=tcp://… for a service named catraca; the port stays the default."""
    loaded = load(
        {},
        {
            "CATRACA_PORT": "tcp://10.0.0.1:50051",
            "CATRACA_SERVICE_HOST": "10.0.0.1",
            "CATRACA_PORT_50051_TCP_PROTO": "tcp",
        },
    )
    assert loaded == Loaded(Settings(), {}, ())


TLS = {"tls_cert": "/tls.crt", "tls_key": "/tls.key"}
CALLERS = {"callers_file": "/callers"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "catraca.internal"])  # noqa: S104  that is the point
def test_where_others_can_reach_it_there_is_tls_and_it_knows_who_calls(host: str) -> None:
    """It takes both, or --insecure, which warns of what is missing. Which authority signs clients is not enough."""
    for given, missing, there in (
        ({}, ("tls_cert, tls_key", "callers_file"), ()),
        (TLS, ("callers_file",), ("tls_cert",)),
        (TLS | {"tls_client_ca": "/ca.crt"}, ("callers_file",), ("tls_cert",)),
        (CALLERS, ("tls_cert, tls_key",), ("callers_file",)),
    ):
        (problem,) = problems({"host": host, **given})
        loaded = load({"host": host, "insecure": "true", **given}, {})
        assert loaded.settings.host == host
        (warning,) = loaded.warnings
        assert "--insecure" in problem
        assert warning.startswith("INSECURE")
        for text in (problem, warning):
            assert all(f"({each})" in text for each in missing)
            assert not any(f"({each}" in text for each in there)
    assert load({"host": host, **TLS, **CALLERS}, {}).warnings == ()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"tls_cert": "/tls.crt"}, "both are needed"),
        ({"tls_key": "/tls.key"}, "both are needed"),
        ({"tls_client_ca": "/ca.crt"}, "only over TLS"),
        ({"store_tls_cert": "/tls.crt", "store_url": "rediss://r"}, "both are needed"),
        ({"store_tls_ca": "/ca.crt"}, "embedded: does not use TLS"),
        ({"store_tls_ca": "/ca.crt", "store_url": "redis://r"}, "does not use TLS"),
        ({"store_tls_ca": "/ca.crt", "store_url": "rediss://r?ssl_ca_certs=/b"}, "names another file itself"),
        ({"host": "unix:/run/catraca.sock", "workers": "2"}, "cannot be shared"),
    ],
)
def test_settings_of_the_transport_that_contradict(flags: dict[str, str], reason: str) -> None:
    """Half of a pair, or what cannot work, is refused."""
    (problem,) = problems(flags)
    assert reason in problem


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "LOCALHOST", " 127.1 ", "unix:/a"])
def test_loopback_needs_no_insecure(host: str) -> None:
    """However it is written; `test_listening` has all forms."""
    assert load({"host": host}, {}).settings.host in ("127.0.0.1", "::1", "localhost", "unix:/a")


BOUNDS = {
    "store_timeout": ("1ms", "10m"),
    "max_connection_age": ("0s", "24h"),
    "default_ttl": ("1ms", "3650d"),
    "default_idle_timeout": ("0s", "3650d"),
    "max_ttl": ("1ms", "3650d"),
    "rotation_grace": ("0s", "300s"),
    "drain_timeout": ("0s", "1h"),
}


def test_every_duration_has_bounds() -> None:
    """There is no setting of a duration that this test does not know."""
    assert {each.name for each in SETTINGS if isinstance(each.default, Duration)} == BOUNDS.keys()


@pytest.mark.parametrize("name", BOUNDS)
def test_durations_end_at_their_bounds(name: str) -> None:
    """Both bounds are allowed, and nothing beyond them, neither by a millisecond nor by millions of days."""
    shortest, longest = BOUNDS[name]
    lifetime = {"max_ttl": "3650d", "default_ttl": "1ms", "default_idle_timeout": "0s"}
    for bound in (shortest, longest):
        assert getattr(load({**lifetime, name: bound}, {}).settings, name) == Duration.parse(bound)
    beyond = [f"{Duration.parse(longest).ms + 1}ms", "3000000d", "999999999999d"]
    if shortest != "0s":
        beyond.append("0s")
    for value in beyond:
        (problem,) = problems({name: value})
        assert problem == f"--{name.replace('_', '-')} must be from {shortest} to {longest}"


NUMBERS = {
    "port": (0, 65535),
    "metrics_port": (0, 65535),
    "workers": (1, 128),
    "max_calls_per_connection": (0, 999_999),
    "max_calls_per_caller": (0, 999_999),
    "max_rate_per_caller": (0, 999_999),
    "invalid_tokens_alarm": (0, 999_999),
    "replica_acks": (0, 9),
    "max_sessions_per_user": (0, 999_999),
}


def test_every_number_has_bounds() -> None:
    """There is no setting of a number that this test does not know."""
    assert {each.name for each in SETTINGS if type(each.default) is int} == NUMBERS.keys()


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_end_at_their_bounds(name: str) -> None:
    """Both bounds are allowed, and nothing beyond them."""
    lowest, highest = NUMBERS[name]
    store = {"store_url": "redis://localhost"}
    for bound in (lowest, highest):
        assert getattr(load({**store, name: str(bound)}, {}).settings, name) == bound
    # The last is longer than Python reads; the one before it is a digit to Python only.
    for value in (str(lowest - 1), str(highest + 1), "", "1.0", "1e1", " 1", "+1", "²", "9" * 5000):
        (problem,) = problems({name: value})
        assert problem == f"--{name.replace('_', '-')} must be a whole number from {lowest} to {highest}"


def test_the_longest_lifetime_fits_the_record() -> None:
    """A session that is created today with the longest settings can be read back."""
    lifetime = {"max_ttl": "3650d", "default_ttl": "3650d", "default_idle_timeout": "3650d"}
    settings = load(lifetime, {}).settings
    now = int(time.time() * 1000)
    session = Session(
        session_id="0" * 22,
        user_id="12345",
        digest="digest",
        attributes={},
        create_time_ms=now,
        absolute_expire_time_ms=now + settings.default_ttl.ms,
        idle_timeout_ms=settings.default_idle_timeout.ms,
    )
    assert decode(encode(session)) == session


@pytest.mark.parametrize("name", ["default_ttl", "default_idle_timeout"])
def test_a_default_longer_than_the_limit_is_refused(name: str) -> None:
    """No caller may request it, so no session may have it by default."""
    short = {"default_ttl": "1h", "default_idle_timeout": "1h"}
    (problem,) = problems({**short, name: "2d", "max_ttl": "1d"})
    assert problem == f"{name} (2d) must not be longer than max_ttl (1d)"


def test_a_default_idle_timeout_that_is_not_set_follows_the_limit() -> None:
    """max_ttl can be lowered below 30 minutes without it, and `config show` has the result."""
    loaded = load({"max_ttl": "10m", "default_ttl": "5m"}, {})
    assert loaded.settings.default_idle_timeout == Duration.parse("10m")
    assert loaded.origins["default_idle_timeout"] == "max_ttl"


@pytest.mark.parametrize("name", ["data_dir", "token_pepper_file"])
@pytest.mark.parametrize(
    ("path", "reason"), [("~nosuchuser/x", "home directory"), ("/a\0b", "NUL"), ("/\udcff", "must be UTF-8")]
)
def test_a_value_that_cannot_be_a_path(name: str, path: str, reason: str) -> None:
    """It is a problem of the setting."""
    (problem,) = problems(environment={f"CATRACA_{name.upper()}": path})
    assert problem.startswith(f"CATRACA_{name.upper()} must be ")
    assert reason in problem


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home directory, as in a shell."""
    monkeypatch.setenv("HOME", "/home/ana")
    assert load({"data_dir": "~/sessions"}, {}).settings.data_dir == Path("/home/ana/sessions")


def unreadable_files(directory: Path) -> dict[str, str]:
    """Returns configuration files that cannot be read, each with the reason."""
    not_utf8, too_deep = directory / "latin1.toml", directory / "deep.toml"
    not_utf8.write_bytes(b'key_prefix = "\xe9"')
    too_deep.write_text("port = " + "[" * 100_000)
    return {
        "~nosuchuser/catraca.toml": "its name must be a path: the home directory",
        "/a\0b": "its name must be a path, which has no NUL",
        "/\udcff": "its name must be UTF-8",
        str(directory): "Is a directory",
        str(directory / "none"): "No such file or directory",
        str(not_utf8 / "x"): "Not a directory",
        str(not_utf8): "it is not UTF-8",
        str(too_deep): "nested too deeply",
    }


def test_configuration_files_that_cannot_be_read(tmp_path: Path) -> None:
    """The problem names the file and the reason."""
    for path, reason in unreadable_files(tmp_path).items():
        (problem,) = problems({"config": path})
        assert problem.startswith(f"configuration file {path!r} cannot be read: ")
        assert reason in problem


@pytest.mark.parametrize("value", ["[1]", "1.5", "2026-11-26", "{ a = 1 }"])
@pytest.mark.parametrize("name", ["key_prefix", "store_password", "port"])
def test_a_value_of_the_wrong_type_in_a_file(name: str, value: str, tmp_path: Path) -> None:
    """It is refused, and not converted to text."""
    file = tmp_path / "catraca.toml"
    file.write_text(f"{name} = {value}\n")
    assert problems({"config": str(file)}) == [
        f"{name} (in the configuration file) must be a string, a whole number, true or false"
    ]


@pytest.mark.parametrize("prefix", ["x" * 201, "é" * 101, "a\nb", "a\0b", "\udcff"])
def test_a_key_prefix_that_is_refused(prefix: str) -> None:
    """It must be short and printable."""
    (problem,) = problems({"key_prefix": prefix})
    assert problem.startswith("--key-prefix must be ")


@pytest.mark.parametrize("name", ["store_password", "sentinel_password"])
def test_a_password_that_is_not_utf8_is_not_shown(name: str) -> None:
    """The problem does not quote it."""
    assert problems(environment={f"CATRACA_{name.upper()}": "hunter2\udcff"}) == [
        f"CATRACA_{name.upper()} must be UTF-8"
    ]


def test_a_store_in_memory_allows_one_worker() -> None:
    """Each worker would have a store of its own."""
    assert load({"store_url": "memory:", "workers": "1"}, {}).settings.workers == 1
    (problem,) = problems({"store_url": "memory:", "workers": "2"})
    assert problem.startswith("store_url memory: allows one worker, not 2")


def test_secrets_are_hidden_and_have_no_flag() -> None:
    """The settings show no password, and no flag accepts one."""
    secret = "hunter2"
    url = f"redis://user:{secret}@localhost:6379/0"
    loaded = load({}, {"CATRACA_STORE_URL": url, "CATRACA_STORE_PASSWORD": secret})
    shown = loaded.settings.shown()
    assert secret not in str(shown)
    assert shown["store_password"] == HIDDEN
    assert shown["store_url"] == f"redis://user:{HIDDEN}@localhost:6379/0"
    (problem,) = problems({"store_url": url})
    assert "CATRACA_STORE_PASSWORD" in problem
    assert secret not in problem
