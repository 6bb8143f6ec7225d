"""The metrics page, as Prometheus reads it."""

import re
import socket
import urllib.request

_SAMPLE = re.compile(r"([a-z_]+)(?:\{((?:[a-z_]+=\"[^\"\\\n]*\",?)*)\})? (\S+)")


def free_port() -> int:
    """Returns a port that is not in use at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> dict[str, float]:
    """Returns every sample, by its name and labels. Each line has to be one, or a comment."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        text = response.read().decode()
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            name = line.rpartition(" ")[0]
            assert name not in samples, "a sample is there once"
            samples[name] = float(match[3])
    return samples


def labels_of(sample: str) -> dict[str, str]:
    """Returns the labels of a sample, by its name and labels."""
    return dict(re.findall(r'([a-z_]+)="([^"]*)"', sample))
