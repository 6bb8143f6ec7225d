"""Settings: where they come from, what is refused, and that secrets stay hidden."""

from pathlib import Path

import pytest

from catraca_server.redis.url import HIDDEN
from catraca_server.settings import Loaded, Millis, Settings, SettingsError, load


def problems(flags: dict[str, str] | None = None, environment: dict[str, str] | None = None) -> list[str]:
    """Returns what is wrong with settings that have something wrong with them."""
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, environment or {})
    return caught.value.problems


def test_without_anything_set_the_defaults_hold() -> None:
    """The documented defaults, and nothing claims to have been set."""
    loaded = load({}, {})
    assert loaded == Loaded(Settings(), {}, ())
    assert loaded.settings.host == "127.0.0.1"
    assert loaded.settings.port == 50051
    assert str(loaded.settings.store_url) == "embedded:"
    assert loaded.settings.store_timeout == Millis(250)
    assert loaded.settings.default_ttl == Millis(86_400_000)
    assert loaded.settings.default_idle_timeout == Millis(1_800_000)
    assert loaded.settings.max_ttl == Millis(30 * 86_400_000)


def test_flag_goes_before_environment_before_file(tmp_path: Path) -> None:
    """Each source yields to the one before it, setting by setting, and the origin is told."""
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
def test_spans_are_read_and_written(text: str, milliseconds: int) -> None:
    """A whole number and a unit; written back, it is the same span."""
    assert Millis.parse(text) == Millis(milliseconds)
    assert Millis.parse(str(Millis(milliseconds))) == Millis(milliseconds)


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
def test_what_is_no_span(text: str) -> None:
    """Everything else is refused with examples."""
    with pytest.raises(ValueError, match="250ms"):
        Millis.parse(text)


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
def test_each_unusable_value_is_named_as_it_was_given(name: str, value: str) -> None:
    """A problem names the flag or the variable, so that it can be found."""
    (flag_problem,) = problems({name: value})
    assert flag_problem.startswith(f"--{name.replace('_', '-')} ")
    (variable_problem,) = problems(environment={f"CATRACA_{name.upper()}": value})
    assert variable_problem.startswith(f"CATRACA_{name.upper()} ")


def test_all_problems_are_told_at_once() -> None:
    """Nobody has to start five times to find five mistakes."""
    told = problems({"port": "x", "log_format": "xml"}, {"CATRACA_STORE_URL": "ftp://x"})
    assert len(told) == 3


def test_a_file_with_unknown_keys_or_no_toml_is_refused(tmp_path: Path) -> None:
    """A misspelt key in a file that was written for catraca is a mistake."""
    file = tmp_path / "catraca.toml"
    file.write_text("prot = 1\n")
    assert "prot" in problems({"config": str(file)})[0]
    file.write_text("port: 1\n")
    assert "cannot be read" in problems({"config": str(file)})[0]
    assert "cannot be read" in problems({"config": str(tmp_path / "none.toml")})[0]


def test_unknown_variables_are_warned_of() -> None:
    """They may be anybody's, so they do not keep the service from starting; the client's own are known."""
    loaded = load({}, {"CATRACA_PROT": "1", "CATRACA_TARGET": "x", "CATRACA_API_KEY": "k", "OTHER": "y"})
    assert loaded.warnings == ("CATRACA_PROT is no setting of catraca and does nothing",)


def test_the_links_of_a_kubernetes_service_called_catraca_are_no_settings() -> None:
    """Kubernetes gives pods CATRACA_PORT=tcp://… for a service of that name; the port stays what it was."""
    loaded = load(
        {},
        {
            "CATRACA_PORT": "tcp://10.0.0.1:50051",
            "CATRACA_SERVICE_HOST": "10.0.0.1",
            "CATRACA_PORT_50051_TCP_PROTO": "tcp",
        },
    )
    assert loaded == Loaded(Settings(), {}, ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "catraca.internal"])  # noqa: S104  that is the point
def test_beyond_loopback_it_takes_an_explicit_word(host: str) -> None:
    """Without TLS and caller authentication it listens on loopback only, unless told otherwise."""
    (problem,) = problems({"host": host})
    assert "--insecure" in problem
    assert load({"host": host, "insecure": "true"}, {}).settings.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_is_loopback_however_it_is_written(host: str) -> None:
    """All of these stay on the machine."""
    assert load({"host": host}, {}).settings.host == host


def test_contradictions_are_refused() -> None:
    """A default that no session could have is a mistake."""
    (problem,) = problems({"default_ttl": "2d", "max_ttl": "1d"})
    assert "default_ttl" in problem
    assert "max_ttl" in problem


def test_a_store_in_memory_takes_one_worker() -> None:
    """Each worker would have a store of its own."""
    assert load({"store_url": "memory:", "workers": "1"}, {}).settings.workers == 1
    (problem,) = problems({"store_url": "memory:", "workers": "2"})
    assert problem.startswith("store_url memory: takes one worker, not 2")


def test_secrets_are_hidden_and_have_no_flag() -> None:
    """What is shown of the settings has no password in it, and no password is taken from a command line."""
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
