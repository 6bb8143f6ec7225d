"""gRPC server reflection that includes the comments of our protos.

Generated code has no comments, so the stock servicer would describe the API without its documentation. It reads
descriptors from a pool; here that pool takes our files from the descriptor set that is generated beside the stubs, with
their comments.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_reflection.v1alpha.reflection import aio


class _DocumentedFile:
    """The part of a FileDescriptor that the servicer uses."""

    def __init__(self, documented: FileDescriptorProto, dependencies: Sequence[Any]) -> None:
        self.name = documented.name
        self.dependencies = dependencies
        self._documented = documented

    def CopyToProto(self, proto: FileDescriptorProto) -> None:  # noqa: N802  protobuf's name
        proto.CopyFrom(self._documented)


class _DocumentedPool:
    """The part of a DescriptorPool that the servicer uses: our files with their comments, all others as they are."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()
        data = (files("catraca.v1") / "descriptors.binpb").read_bytes()
        self._documented = {file.name: file for file in FileDescriptorSet.FromString(data).file}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileByName(self, name: str) -> Any:  # noqa: N802  protobuf's name
        documented = self._documented.get(name)
        if documented is None:
            return self._pool.FindFileByName(name)
        return _DocumentedFile(documented, [self.FindFileByName(each) for each in documented.dependency])

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802  protobuf's name
        try:
            file = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            # The pool knows services but not their methods, which `grpcurl describe` asks for.
            file = self._pool.FindFileContainingSymbol(symbol.rpartition(".")[0])
        return self.FindFileByName(file.name)


def servicer(*services: str) -> aio.ReflectionServicer:
    """Returns the servicer of grpc.reflection.v1alpha for these services."""
    return aio.ReflectionServicer(services, pool=_DocumentedPool())
