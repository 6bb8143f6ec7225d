"""The command line: `python -m bench`, and the same for one kind of comparison only."""

import argparse
import signal
import sys
from pathlib import Path

from bench.engines import NEWEST, OLDEST, VERSIONS, compare_engines
from bench.http2 import LoadError
from bench.life import compare_life
from bench.measure import Plan
from bench.overload import compare_overload
from bench.plot import plot
from bench.processes import StartError
from bench.scale import compare_scale
from bench.validation import compare_validations

_WORK = Path("build/bench")


def main() -> None:
    """Measures, prints the tables, and writes the numbers and the plot."""
    arguments = _parser().parse_args()
    # Stopped from outside, the servers stop as well: SystemExit runs the `finally` blocks that stop them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Fewer where there are two kinds to measure, so that nobody waits longer than for a cup of coffee.
    rounds = arguments.rounds or (2 if arguments.quick else 12 if arguments.what else 7)
    plan = Plan(rounds, warm_up=0.3, seconds=1.0)
    if arguments.what == "engines":
        versions = (NEWEST, OLDEST) if arguments.quick else VERSIONS
        results = compare_engines(plan, work=_WORK, versions=versions, pythons=arguments.python, progress=_show)
    elif arguments.what == "validation":
        results = compare_validations(plan, progress=_show)
    elif arguments.what == "life":
        results = compare_life(plan, progress=_show)
    elif arguments.what == "overload":
        results = compare_overload(quick=arguments.quick, progress=_show)
    elif arguments.what == "scale":
        results = compare_scale(plan, quick=arguments.quick, progress=_show)
    else:
        results = compare_validations(plan, progress=_show) + compare_life(plan, progress=_show)
    _show("")
    print(results.text())
    results.save(arguments.json)
    if not results.tables:
        return
    try:
        plot(results, arguments.json.with_suffix(".svg"))
    except ModuleNotFoundError as error:
        print(f"No plot: {error}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["validation", "life", "engines", "overload", "scale"],
        help="both of the first two if none",
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two, for a rough idea")
    parser.add_argument("--rounds", type=int, help="take this many rounds")
    parser.add_argument("--json", type=Path, default=_WORK / "results.json", help="where the numbers go (%(default)s)")
    parser.add_argument(
        "--python", action="append", default=[], metavar="PATH", help="engines: a further interpreter, may be repeated"
    )
    return parser


def _show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)


try:
    main()
except (StartError, LoadError) as error:
    sys.exit(f"\nbench: {error}")
