"""A gRPC server for asyncio over grpcio's completion queue, with calls handed over in batches.

    server = Server(options)
    server.add_methods({
        "/shop.Prices/Quote": BatchMethod(quote),       # def quote(calls: list[UnaryCall]) -> None
        "/shop.Prices/Change": UnaryMethod(change),     # async def change(call: UnaryCall) -> bytes
        "/shop.Prices/Watch": StreamMethod(watch),      # async def watch(stream: Stream) -> None
    })
    port = server.listen("127.0.0.1:0")
    server.start()
    ...
    await server.stop(grace_seconds=10)

It handles bytes, metadata and statuses, and knows nothing about messages. All of it runs on the event loop that was
running at `start`; nothing here may be called from another thread. docs/decisions/0004-engine.md says which parts of
grpcio it uses, and why.
"""

from catraca_server.api.engine.calls import Arrival, Call, Guard, UnaryCall
from catraca_server.api.engine.methods import BatchMethod, Method, StreamMethod, UnaryMethod
from catraca_server.api.engine.observer import Observer
from catraca_server.api.engine.server import Server
from catraca_server.api.engine.servicers import from_rpc_handler, from_servicer
from catraca_server.api.engine.statuses import Metadata, Status, StatusError
from catraca_server.api.engine.streams import Stream

__all__ = [
    "Arrival",
    "BatchMethod",
    "Call",
    "Guard",
    "Metadata",
    "Method",
    "Observer",
    "Server",
    "Status",
    "StatusError",
    "Stream",
    "StreamMethod",
    "UnaryCall",
    "UnaryMethod",
    "from_rpc_handler",
    "from_servicer",
]
