"""Settings as an operator sets them for `catraca serve` and inspects them with `catraca config`."""

from pathlib import Path

import pytest
from tests.support.command import catraca
from tests.support.service import ServeProcess

YES, USAGE = 0, 2
LEAST = {"--max-ttl": "1ms", "--default-ttl": "1ms", "--default-idle-timeout": "0s"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "catraca.toml"
    path.write_text('port = 1111\nmax_ttl = "2d"\ndefault_ttl = "1h"\nstore_password = "from the file"\n')
    return path


def test_flag_overrides_environment_overrides_file(file: Path) -> None:
    """Setting by setting, and `config show` says where each comes from."""
    environment = {"CATRACA_CONFIG": str(file), "CATRACA_PORT": "2222", "CATRACA_MAX_TTL": "3d"}
    shown = catraca("config", "show", "--port", "3333", environment=environment)
    assert shown.returncode == YES
    for line in (
        "CATRACA_PORT=3333  # flag",
        "CATRACA_MAX_TTL=3d  # CATRACA_MAX_TTL",
        "CATRACA_DEFAULT_TTL=1h  # file",
        "CATRACA_HOST=127.0.0.1  # default",
    ):
        assert line in shown.stdout.splitlines()


def test_serve_uses_what_config_shows(file: Path) -> None:
    """`serve` follows the same rules: here it refuses what the file says, and a setting overrides the file."""
    environment = {"CATRACA_CONFIG": str(file), "CATRACA_STORE_URL": "memory:"}
    file.write_text('host = "192.0.2.1"\n')
    refused = catraca("serve", environment=environment)
    assert (refused.returncode, "192.0.2.1 is not loopback" in refused.stderr) == (USAGE, True)
    with ServeProcess(environment, host="127.0.0.1") as process:
        assert process.target.startswith("127.0.0.1:")


def test_secrets_are_hidden(file: Path) -> None:
    """`config show` hides passwords, wherever they are."""
    for url in ("redis://user:hunter2@localhost", "redis://:hunter2@localhost"):
        shown = catraca("config", "show", "--config", str(file), environment={"CATRACA_STORE_URL": url})
        assert shown.returncode == YES
        assert "CATRACA_STORE_PASSWORD=********  # file" in shown.stdout.splitlines()
        assert "hunter2" not in shown.stdout + shown.stderr
        assert "from the file" not in shown.stdout + shown.stderr


@pytest.mark.parametrize("url", ["redis://:hunter2@localhost", "redis://localhost?password=hunter2"])
def test_a_password_cannot_be_a_flag(url: str) -> None:
    """A password on the command line, which others can read, is refused."""
    for words in (("serve", "--store-url", url), ("config", "check", "--store-url", url)):
        refused = catraca(*words)
        assert refused.returncode == USAGE
        assert "--store-url must not hold a password" in refused.stderr
        assert "hunter2" not in refused.stdout + refused.stderr
    assert catraca("serve", "--store-password", "hunter2").returncode == USAGE


def test_a_password_among_the_options_is_not_shown() -> None:
    """A URL that is refused for its options does not spill a password that is one of them."""
    refused = catraca("serve", environment={"CATRACA_STORE_URL": "redis://localhost?password=hunter2"})
    assert refused.returncode == USAGE
    assert "(password)" in refused.stderr
    assert "hunter2" not in refused.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('color = "red"\n', "color (in the configuration file) is not a setting of catraca"),
        ('port = "many"\n', "port (in the configuration file) must be a whole number from 0 to 65535"),
        ("port = \n", "cannot be read: it is not TOML"),
        ('default_ttl = "60d"\n', "default_ttl (60d) must not be longer than max_ttl (30d)"),
    ],
)
def test_a_file_with_a_mistake(content: str, told: str, file: Path) -> None:
    """`config check` and `serve` both report it."""
    file.write_text(content)
    for words in (("config", "check"), ("serve",)):
        refused = catraca(*words, "--config", str(file))
        assert refused.returncode == USAGE
        assert told in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A configuration file that is named must exist."""
    refused = catraca("config", "check", "--config", str(tmp_path / "none.toml"))
    assert (refused.returncode, "cannot be read" in refused.stderr) == (USAGE, True)


@pytest.mark.parametrize("path", ["~nosuchuser/catraca", "/caf\udce9"])
@pytest.mark.parametrize("flag", ["--config", "--data-dir", "--token-pepper-file"])
def test_what_cannot_be_a_path(flag: str, path: str) -> None:
    """`config` and `serve` both report it as a mistake in the settings."""
    for words in (("config", "check"), ("config", "show"), ("serve",)):
        refused = catraca(*words, flag, path)
        assert refused.returncode == USAGE
        assert refused.stderr.startswith("catraca: ")
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("flag", ["--max-ttl", "--default-ttl", "--default-idle-timeout"])
def test_a_lifetime_that_no_record_can_hold(flag: str) -> None:
    """It is refused before a session is made that could not be read back."""
    for words in (("config", "check"), ("serve",)):
        refused = catraca(*words, flag, "3000000d")
        assert (refused.returncode, refused.stderr) == (USAGE, f"catraca: {flag} must be from {LEAST[flag]} to 3650d\n")


def test_check_reports_all_mistakes_at_once() -> None:
    """Every mistake gets a line."""
    refused = catraca("config", "check", "--port", "x", environment={"CATRACA_MAX_TTL": "1", "CATRACA_LOG_LEVEL": "y"})
    assert refused.returncode == USAGE
    assert [line.split()[1] for line in refused.stderr.splitlines()] == [
        "--port",
        "CATRACA_MAX_TTL",
        "CATRACA_LOG_LEVEL",
    ]


def test_check_of_good_settings(file: Path) -> None:
    """Valid settings pass; a variable that is not a setting causes a warning, because it may be a typo."""
    checked = catraca("config", "check", "--config", str(file), environment={"CATRACA_STORE_TIMEOUTS": "1s"})
    assert (checked.returncode, checked.stdout) == (YES, "the settings can be used\n")
    assert checked.stderr == "catraca: warning: CATRACA_STORE_TIMEOUTS is not a setting of catraca and has no effect\n"


def test_json_log() -> None:
    """With the JSON format every line of the log is an object."""
    with ServeProcess(store_url="memory:", log_format="json") as process:
        assert process.stop() == 0
    lines = process.log.splitlines()
    assert all(line.startswith('{"time": "') and line.endswith("}") for line in lines)
    assert '"message": "stopped"' in lines[-1]
