"""The latencies of `catraca bench` as an SVG: the share of the validations answered within each time."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from catraca.cli.bench_load import Outcome

_WIDTH, _HEIGHT, _LEFT, _TOP, _LINE = 760, 360, 60, 30, 22
_COLOURS = ("#2f6db5", "#c8553d", "#3b8a5a", "#8a5fb0", "#555555")
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


def write(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draws those that have answers. Raises OSError."""
    file.write_text("\n".join(_svg([each for each in outcomes if each.counts])) + "\n", encoding="utf-8")


def _svg(outcomes: Sequence[Outcome]) -> Iterator[str]:
    height = _TOP + _HEIGHT + 50 + _LINE * len(outcomes)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 40} {height}"'
        ' font-family="sans-serif" font-size="13">'
    )
    yield '<rect width="100%" height="100%" fill="white"/>'
    yield f'<text x="{_LEFT}" y="18">Share of the validations that were answered within a time</text>'
    low = math.floor(math.log10(max(min((min(each.counts) for each in outcomes), default=1), 1)))
    high = max(math.ceil(math.log10(max((each.slowest for each in outcomes), default=10))), low + 1)
    for power in range(low, high + 1):
        x = _x(10**power, low, high)
        yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _HEIGHT}" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{_time(10**power)}</text>'
    for percent in (0, 50, 90, 100):
        y = _TOP + _HEIGHT * (1 - percent / 100)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _WIDTH}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>'
    for at, outcome in enumerate(outcomes):
        colour = _COLOURS[at % len(_COLOURS)]
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{_points(outcome, low, high)}"/>'
        y = _TOP + _HEIGHT + 44 + _LINE * at
        yield f'<rect x="{_LEFT}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
        told = ", ".join(f"{name} {_time(value * 1e9)}" for name, value in outcome.percentiles().items())
        yield f'<text x="{_LEFT + 20}" y="{y}">{escape(outcome.name)}: {outcome.rate:,.0f}/s, {told}</text>'
    yield "</svg>"


def _points(outcome: Outcome, low: int, high: int) -> str:
    so_far, points = 0, []
    for value, count in sorted(outcome.counts.items()):
        x = _x(value, low, high)
        points.append(f"{x:.1f},{_TOP + _HEIGHT * (1 - so_far / outcome.validations):.1f}")
        so_far += count
        points.append(f"{x:.1f},{_TOP + _HEIGHT * (1 - so_far / outcome.validations):.1f}")
    return " ".join(points)


def _x(nanoseconds: int, low: int, high: int) -> float:
    return _LEFT + _WIDTH * (math.log10(max(nanoseconds, 1)) - low) / (high - low)


def _time(nanoseconds: float) -> str:
    size, unit = next(((size, unit) for size, unit in _UNITS if nanoseconds >= size), _UNITS[-1])
    return f"{nanoseconds / size:.3g} {unit}"
