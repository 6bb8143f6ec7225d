"""What catraca's own engine alone costs: a server whose one method answers prebuilt bytes.

It runs on uvloop, as catraca does.
"""

import argparse
import asyncio
import importlib
import sys
from typing import Any

import uvloop

# By its name, because not every checkout has one: `bench.peer_comparison` looks first.
engine: Any = importlib.import_module("catraca_server.api.engine")


async def _serve(path: str, response: bytes) -> None:
    def answer(calls: list[Any]) -> None:
        for call in calls:
            call.reply(response)

    server = engine.Server()
    server.add_methods({path: engine.BatchMethod(answer)})
    port = server.listen("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr)
    await asyncio.Event().wait()


def main() -> None:
    """Serves until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("response_bytes", type=int)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(arguments.path, bytes(arguments.response_bytes)))


if __name__ == "__main__":
    main()
