"""The command line: `python -m bench`, and the same for one kind of comparison only."""

import argparse
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.checkouts import Checkout, checkout
from bench.client import compare_clients
from bench.door import compare_doors
from bench.engines import NEWEST, OLDEST, VERSIONS, compare_engines
from bench.http2 import LoadError
from bench.life import compare_life
from bench.measure import Plan
from bench.overload import compare_overload
from bench.peer_comparison import compare_peers
from bench.plot import plot
from bench.processes import StartError
from bench.report import Results
from bench.revocations import measure_revocations, plot_revocations
from bench.scale import compare_scale
from bench.validation import compare_validations
from bench.watchers import measure_watchers

_WORK = Path("build/bench")

_WITH_OTHER = (None, "validation", "life", "peers")


def main() -> None:
    """Measures, prints the tables, and writes the numbers and the plot."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.against and arguments.what not in _WITH_OTHER:
        parser.error(f"--against does not go with {arguments.what}")
    # A signal must stop the servers as well: SystemExit runs the `finally` blocks that stop them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Fewer rounds if there are several kinds to measure, so that the whole run takes minutes.
    rounds = arguments.rounds or (2 if arguments.quick else 12 if arguments.what else 7)
    if arguments.what == "revocations":
        _show_revocations(arguments)
        return
    plan = Plan(rounds, warm_up_seconds=0.3, seconds=1.0, only=arguments.only)
    with ExitStack() as stack:
        other = None
        if arguments.against:
            _show("preparing the other checkout")
            other = stack.enter_context(checkout(arguments.against, workdir=_WORK))
        results = _measured(arguments, plan, other).without_missing()
    _show("")
    print(results.text())
    results.save(arguments.json)
    if not results.tables:
        return
    try:
        plot(results, arguments.json.with_suffix(".svg"))
    except ModuleNotFoundError as error:
        print(f"No plot: {error}.")


def _show_revocations(arguments: argparse.Namespace) -> None:
    found = measure_revocations(quick=arguments.quick, progress=_show)
    watched = measure_watchers(seconds=5.0 if arguments.quick else 20.0, progress=_show)
    _show("")
    print("\n".join(each.line() for each in found), watched.text(), sep="\n\n")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        plot_revocations(found, arguments.json.with_suffix(".svg"))
    except ModuleNotFoundError as error:
        print(f"No plot: {error}.")


def _measured(arguments: argparse.Namespace, plan: Plan, other: Checkout | None) -> Results:
    quick = arguments.quick
    versions = (NEWEST, OLDEST) if quick else VERSIONS
    comparisons: dict[str, Callable[[], Results]] = {
        "validation": lambda: compare_validations(plan, other=other, progress=_show),
        "life": lambda: compare_life(plan, other=other, progress=_show),
        "door": lambda: compare_doors(plan, progress=_show),
        "client": lambda: compare_clients(plan, progress=_show),
        "peers": lambda: compare_peers(plan, workdir=_WORK, other=other, progress=_show),
        "engines": lambda: compare_engines(
            plan, work=_WORK, versions=versions, pythons=arguments.python, progress=_show
        ),
        "overload": lambda: compare_overload(quick=quick, progress=_show),
        "scale": lambda: compare_scale(plan, quick=quick, progress=_show),
    }
    if arguments.what is None:
        whole = comparisons["validation"]() + comparisons["life"]() + comparisons["door"]()
        # The last one, because it keeps this process on its core.
        return whole + comparisons["client"]()
    return comparisons[arguments.what]()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["validation", "life", "door", "client", "peers", "engines", "overload", "scale", "revocations"],
        help="the first four if not given",
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two, for a rough idea")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="not overload, scale: only rows in whose names this is found"
    )
    parser.add_argument("--rounds", type=int, help="take this many rounds")
    parser.add_argument("--json", type=Path, default=_WORK / "results.json", help="where the numbers go (%(default)s)")
    parser.add_argument(
        "--python", action="append", default=[], metavar="PATH", help="engines: a further interpreter, may be repeated"
    )
    parser.add_argument(
        "--against",
        metavar="CHECKOUT",
        help="validation, life, peers: measure another catraca beside this one: a folder with one, or a commit",
    )
    return parser


def _show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)


try:
    main()
except (StartError, LoadError) as error:
    sys.exit(f"\nbench: {error}")
