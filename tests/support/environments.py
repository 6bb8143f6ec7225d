"""Fresh Python environments to install the built wheel into, as users do."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.command import clean_environment

_INSTALL_PATIENCE = 600
_SMALL_PACKAGE = "typing-extensions"


class Environment:
    """A virtual environment of its own, of the Python that runs the tests. uv makes it if there is one: it is quick."""

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
        """Why nothing can be installed from the index; empty if something can."""
        done = self._install("--dry-run", _SMALL_PACKAGE)
        return "" if done.returncode == 0 else f"no package index: {done.stderr.strip().splitlines()[-1]}"

    def run(self, *words: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs its Python with these words; keyword arguments are settings of catraca."""
        twins = {f"CATRACA_{name.upper()}": value for name, value in settings.items()}
        return subprocess.run(
            [self.python, *words],
            env=isolated(twins),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_INSTALL_PATIENCE,
            check=False,
            # Nowhere near the checkout, which must not be what is imported.
            cwd=self.python.parent,
        )

    def versions(self) -> dict[str, str]:
        """Returns what is installed."""
        code = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
        return dict(line.split() for line in self.run("-c", code).stdout.splitlines())

    def _install(self, *words: str) -> subprocess.CompletedProcess[str]:
        if self._uv:
            return _try(self._uv, "pip", "install", "--quiet", "--python", str(self.python), *words)
        return _try(str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words)


def isolated(settings: dict[str, str]) -> dict[str, str]:
    """Returns an environment in which Python finds nothing but what is installed."""
    return {name: value for name, value in clean_environment(settings).items() if name != "PYTHONPATH"}


def _try(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=isolated({}), capture_output=True, text=True, timeout=_INSTALL_PATIENCE, check=False
    )


def _run(*words: str) -> None:
    done = _try(*words)
    assert done.returncode == 0, done.stderr
