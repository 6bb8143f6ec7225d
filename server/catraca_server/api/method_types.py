"""The type of each method, by its path, in the words of the metrics."""

from collections.abc import Sequence
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from catraca.v1 import session_service_pb2 as pb

_TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


def method_types() -> dict[str, str]:
    """Returns the types of all methods that a server may have."""
    services: Sequence[Any] = [
        pb.DESCRIPTOR.services_by_name["SessionService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    ]
    return {
        f"/{service.full_name}/{method.name}": _TYPES[method.client_streaming, method.server_streaming]
        for service in services
        for method in service.methods
    }
