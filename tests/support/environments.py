"""Fresh Python environments to install the built wheel into, as users do."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.command import clean_environment

_INSTALL_TIMEOUT_SECONDS = 600
_SMALL_PACKAGE = "typing-extensions"


class Environment:
    """A virtual environment with the Python that runs the tests. Made by uv if that is installed, which is faster."""

    def __init__(self, directory: Path) -> None:
        self.python = directory / "bin" / "python"
        self._uv = shutil.which("uv", path=str(Path(sys.executable).parent))
        if self._uv:
            _run(self._uv, "venv", "--quiet", "--python", sys.executable, str(directory))
        else:
            _run(sys.executable, "-m", "venv", str(directory))

    def install(self, *requirements: str) -> None:
        """Installs packages from the index, or fails."""
        done = self._install(*requirements)
        assert done.returncode == 0, done.stderr

    def why_no_index(self) -> str:
        """Why packages cannot be installed from the index; empty if they can."""
        done = self._install("--dry-run", _SMALL_PACKAGE)
        return "" if done.returncode == 0 else f"no package index: {done.stderr.strip().splitlines()[-1]}"

    def run(self, *args: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs its Python with these arguments; keyword arguments are settings of catraca."""
        twins = {f"CATRACA_{name.upper()}": value for name, value in settings.items()}
        return subprocess.run(
            [self.python, *args],
            env=isolated(twins),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_SECONDS,
            check=False,
            # Outside the checkout, so that this is not imported.
            cwd=self.python.parent,
        )

    def versions(self) -> dict[str, str]:
        """Returns the installed packages."""
        code = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
        return dict(line.split() for line in self.run("-c", code).stdout.splitlines())

    def _install(self, *args: str) -> subprocess.CompletedProcess[str]:
        if self._uv:
            return _try(self._uv, "pip", "install", "--quiet", "--python", str(self.python), *args)
        return _try(str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *args)


def isolated(settings: dict[str, str]) -> dict[str, str]:
    """Returns environment variables with which Python imports only what is installed."""
    return {name: value for name, value in clean_environment(settings).items() if name != "PYTHONPATH"}


def _try(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args, env=isolated({}), capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_SECONDS, check=False
    )


def _run(*args: str) -> None:
    done = _try(*args)
    assert done.returncode == 0, done.stderr
