"""What catraca's own engine alone costs: a server whose one method answers prebuilt bytes.

It runs on uvloop and has the listener that catraca has.
"""

import argparse
import asyncio
import os
import sys

import uvloop

from catraca_server.runtime.core_environment import ENVIRONMENT

os.environ.update({**ENVIRONMENT, **os.environ})

from catraca_server.api.engine import BatchMethod, Server, UnaryCall


async def _serve(path: str, response: bytes) -> None:
    def answer(calls: list[UnaryCall]) -> None:
        for call in calls:
            call.reply(response)

    server = Server([("grpc.so_reuseport", 0)])
    server.add_methods({path: BatchMethod(answer)})
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
