"""The service inside the test's own process, where its log and its tasks can be inspected."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from catraca.v1 import session_service_pb2 as pb
from catraca_server.app import running
from catraca_server.settings import load

METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
    for method in pb.DESCRIPTOR.services_by_name["SessionService"].methods
    if not method.client_streaming
}
"""Request and response of each unary method of SessionService, also of those to come."""


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[str]:
    """Runs the service on a free port and yields its target; `store_url="memory:"` sets CATRACA_STORE_URL."""
    twins = {f"CATRACA_{name.upper()}": value for name, value in settings.items()}
    async with running(load({}, {"CATRACA_PORT": "0", **twins}).settings, {}, None) as target:
        yield target
