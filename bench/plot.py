"""A plot of the medians with their extremes, as SVG."""

import importlib
from pathlib import Path

from bench.report import Results


def plot(results: Results, file: Path) -> None:
    """Draws what each row costs, one panel for each table."""
    # Imported here because it is installed for `make bench` only: type checking must work without it.
    figure_module = importlib.import_module("matplotlib.figure")
    heights = [len(table.rows) for table in results.tables]
    figure = figure_module.Figure(figsize=(10, 1.2 * len(heights) + 0.35 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for panel, table in zip(panels, results.tables, strict=True):
        costs = [results.spread(row, table.plotted, table.base(row)) for row in table.rows]
        medians = [cost.median for cost in costs]
        below = [cost.median - cost.low for cost in costs]
        above = [cost.high - cost.median for cost in costs]
        bars = panel.barh(table.rows, medians, xerr=(below, above), color="#7d9fc4", ecolor="#333333", capsize=3)
        panel.bar_label(bars, [table.plotted.form.format(median) for median in medians], padding=4, label_type="center")
        panel.invert_yaxis()
        panel.set_title(table.title, loc="left")
        panel.set_xlabel(f"{table.plotted.heading}: median and extremes of the rounds")
    figure.savefig(file)
