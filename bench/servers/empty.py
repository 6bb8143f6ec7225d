"""What the engine alone costs: a grpc.aio server whose handlers answer prebuilt bytes.

Needs nothing but grpcio and uvloop, so that it runs in environments of many versions. It has a real server's shape:
one service of ours and, beside it, services shaped like health and reflection.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

import grpc
import uvloop

Behaviour = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


def _register(server: grpc.aio.Server, service: str, methods: Sequence[str], answer: Behaviour, *, plus: bool) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method: grpc.unary_unary_rpc_method_handler(answer) for method in methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    if plus:
        # The second half of what a generated `add_…_to_server` does.
        server.add_registered_method_handlers(service, handlers)


async def _serve(arguments: argparse.Namespace) -> None:
    response = bytes(arguments.response_bytes)

    async def answer(_request: bytes, _context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return response

    server = grpc.aio.server()
    methods = [f"Method{number}" for number in range(arguments.methods)]
    _register(server, "bench.Empty", methods, answer, plus=arguments.register == "all")
    beside = arguments.register in {"all", "others"}
    _register(server, "bench.Health", ["Check", "List", "Watch"], answer, plus=beside)
    _register(server, "bench.Reflection", ["Info"], answer, plus=beside)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr)
    await server.wait_for_termination()


def main() -> None:
    """Serves until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", type=int, default=5)
    parser.add_argument("--register", choices=["none", "others", "all"], default="none")
    parser.add_argument("--response-bytes", type=int, required=True)
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    factory = uvloop.new_event_loop if arguments.uvloop else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(arguments))


if __name__ == "__main__":
    main()
