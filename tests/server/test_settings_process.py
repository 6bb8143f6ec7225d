"""Settings as an operator gives them to `catraca serve`, and sees them with `catraca config`."""

from pathlib import Path

import pytest
from tests.support.command import catraca
from tests.support.service import ServeProcess

OK, USAGE = 0, 2
SHORTEST = {"--max-ttl": "1ms", "--default-ttl": "1ms", "--default-idle-timeout": "0s"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "catraca.toml"
    path.write_text('port = 1111\nmax_ttl = "2d"\ndefault_ttl = "1h"\nstore_password = "from the file"\n')
    return path


def test_flag_before_environment_before_file(file: Path) -> None:
    """Each setting is taken from the first of these that has it, and `config show` says from which."""
    environment = {"CATRACA_CONFIG": str(file), "CATRACA_PORT": "2222", "CATRACA_MAX_TTL": "3d"}
    shown = catraca("config", "show", "--port", "3333", environment=environment)
    assert shown.returncode == OK
    for line in (
        "CATRACA_PORT=3333  # flag",
        "CATRACA_MAX_TTL=3d  # CATRACA_MAX_TTL",
        "CATRACA_DEFAULT_TTL=1h  # file",
        "CATRACA_HOST=127.0.0.1  # default",
    ):
        assert line in shown.stdout.splitlines()


def test_serve_reads_what_config_shows(file: Path) -> None:
    """`serve` has the same order: it refuses a value in the file, and a flag overrides it."""
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
        assert shown.returncode == OK
        assert "CATRACA_STORE_PASSWORD=********  # file" in shown.stdout.splitlines()
        assert "hunter2" not in shown.stdout + shown.stderr
        assert "from the file" not in shown.stdout + shown.stderr


@pytest.mark.parametrize("url", ["redis://:hunter2@localhost", "redis://localhost?password=hunter2"])
def test_a_password_is_not_a_flag(url: str) -> None:
    """A password on the command line, which others can read, is refused."""
    for args in (("serve", "--store-url", url), ("config", "check", "--store-url", url)):
        refused = catraca(*args)
        assert refused.returncode == USAGE
        assert "--store-url must not hold a password" in refused.stderr
        assert "hunter2" not in refused.stdout + refused.stderr
    assert catraca("serve", "--store-password", "hunter2").returncode == USAGE


def test_a_password_among_the_options_is_not_shown() -> None:
    """A URL that is refused for its options does not show a password among them."""
    refused = catraca("serve", environment={"CATRACA_STORE_URL": "redis://localhost?password=hunter2"})
    assert refused.returncode == USAGE
    assert "(password)" in refused.stderr
    assert "hunter2" not in refused.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('color = "red"\n', "color (in the configuration file) is not a setting of catraca"),
        ('port = "many"\n', "port (in the configuration file) must be a whole number from 0 to 65535"),
        ("port = \n", "cannot be read: it is not TOML"),
        ('default_ttl = "60d"\n', "default_ttl (60d) must not be longer than max_ttl (30d)"),
    ],
)
def test_a_file_with_a_mistake(content: str, message: str, file: Path) -> None:
    """`config check` and `serve` both say what is wrong in the file."""
    file.write_text(content)
    for args in (("config", "check"), ("serve",)):
        refused = catraca(*args, "--config", str(file))
        assert refused.returncode == USAGE
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    """A configuration file that is named has to exist."""
    refused = catraca("config", "check", "--config", str(tmp_path / "none.toml"))
    assert (refused.returncode, "cannot be read" in refused.stderr) == (USAGE, True)


@pytest.mark.parametrize("path", ["~nosuchuser/catraca", "/caf\udce9"])
@pytest.mark.parametrize("flag", ["--config", "--data-dir", "--token-pepper-file"])
def test_what_cannot_be_a_path(flag: str, path: str) -> None:
    """It is a mistake in the settings, for `config` and for `serve`."""
    for args in (("config", "check"), ("config", "show"), ("serve",)):
        refused = catraca(*args, flag, path)
        assert refused.returncode == USAGE
        assert refused.stderr.startswith("catraca: ")
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("flag", ["--max-ttl", "--default-ttl", "--default-idle-timeout"])
def test_a_lifetime_that_no_record_can_hold(flag: str) -> None:
    """It is refused before a session is made that could not be read back."""
    for args in (("config", "check"), ("serve",)):
        refused = catraca(*args, flag, "3000000d")
        assert (refused.returncode, refused.stderr) == (
            USAGE,
            f"catraca: {flag} must be from {SHORTEST[flag]} to 3650d\n",
        )


def test_check_reports_all_mistakes_at_once() -> None:
    """Every mistake is a line of its own."""
    refused = catraca("config", "check", "--port", "x", environment={"CATRACA_MAX_TTL": "1", "CATRACA_LOG_LEVEL": "y"})
    assert refused.returncode == USAGE
    assert [line.split()[1] for line in refused.stderr.splitlines()] == [
        "--port",
        "CATRACA_MAX_TTL",
        "CATRACA_LOG_LEVEL",
    ]


def test_check_of_good_settings(file: Path) -> None:
    """The command says that they can be used; a variable that is not a setting is a warning: it may be a typo."""
    checked = catraca("config", "check", "--config", str(file), environment={"CATRACA_STORE_TIMEOUTS": "1s"})
    assert (checked.returncode, checked.stdout) == (OK, "the settings can be used\n")
    assert checked.stderr == "catraca: warning: CATRACA_STORE_TIMEOUTS is not a setting of catraca and has no effect\n"


def test_json_log() -> None:
    """With the JSON format every line of the log is an object."""
    with ServeProcess(store_url="memory:", log_format="json") as process:
        assert process.stop() == 0
    lines = process.log.splitlines()
    assert all(line.startswith('{"time": "') and line.endswith("}") for line in lines)
    assert '"message": "stopped"' in lines[-1]
