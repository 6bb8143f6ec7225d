"""What our own engine costs with nothing behind it: answers prebuilt bytes, by a batch handler or by coroutines."""

import argparse
import asyncio
import sys

import uvloop

from catraca_server.api.engine import BatchMethod, Method, Server, UnaryCall, UnaryMethod


async def _serve(arguments: argparse.Namespace) -> None:
    response = bytes(arguments.response_bytes)

    def answer_all(calls: list[UnaryCall]) -> None:
        for call in calls:
            call.reply(response)

    async def answer(_call: UnaryCall) -> bytes:
        return response

    method: Method = UnaryMethod(answer) if arguments.coroutines else BatchMethod(answer_all)
    server = Server([("grpc.so_reuseport", 0)])
    server.add_methods({"/bench.Empty/Method0": method})
    port = server.listen("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serves until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--response-bytes", type=int, required=True)
    parser.add_argument("--coroutines", action="store_true")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
