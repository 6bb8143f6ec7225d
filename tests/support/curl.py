"""Calls a gRPC server with only reflection to go by, as people do: with grpcurl or `buf curl`."""

import base64
import json
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from tests.support.waiting import TIMEOUT_SECONDS

_REFLECT = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@dataclass(frozen=True)
class Response:
    """The status of a call and, if that is OK, its response as JSON."""

    status: str
    json: dict[str, Any]
    message: str = ""


class Curl(ABC):
    """A program that calls gRPC methods."""

    name: str

    def __init__(self) -> None:
        found = shutil.which(self.name, path=str(Path(sys.executable).parent)) or shutil.which(self.name)
        self.program = found or ""

    @property
    def why_missing(self) -> str:
        """Why the program cannot be used; empty if it can."""
        return "" if self.program else f"no {self.name}: see tools/optional.sh"

    @abstractmethod
    def call(self, target: str, method: str, request: dict[str, Any] | None = None) -> Response:
        """Calls `package.Service/Method`."""

    @abstractmethod
    def services(self, target: str) -> list[str]:
        """Returns the names of all services."""

    @abstractmethod
    def documentation(self, target: str, symbol: str) -> str:
        """Returns the definition of a service, method or message, with its comments."""

    def _run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *args],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def _output(self, *args: str) -> str:
        done = self._run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout


class Grpcurl(Curl):
    """https://github.com/fullstorydev/grpcurl."""

    name = "grpcurl"

    def call(self, target: str, method: str, request: dict[str, Any] | None = None) -> Response:
        """Calls with the request as JSON."""
        done = self._run("-plaintext", "-format-error", "-d", json.dumps(request or {}), target, method)
        if done.returncode == 0:
            return Response("OK", json.loads(done.stdout))
        error = json.loads(done.stderr)
        status = next(code for code in grpc.StatusCode if code.value[0] == error["code"])
        return Response(status.name, {}, error["message"])

    def services(self, target: str) -> list[str]:
        """Lists them."""
        return self._output("-plaintext", target, "list").split()

    def documentation(self, target: str, symbol: str) -> str:
        """Describes it."""
        return self._output("-plaintext", target, "describe", symbol)


class BufCurl(Curl):
    """`buf curl`, which comes as a Python package."""

    name = "buf"
    _ARGS = ("curl", "--protocol", "grpc", "--http2-prior-knowledge")

    def call(self, target: str, method: str, request: dict[str, Any] | None = None) -> Response:
        """Calls with the request as JSON."""
        done = self._run(*self._ARGS, "--data", json.dumps(request or {}), f"http://{target}/{method}")
        if done.returncode == 0:
            return Response("OK", json.loads(done.stdout))
        error = json.loads(done.stderr)
        return Response(error["code"].upper(), {}, error["message"])

    def services(self, target: str) -> list[str]:
        """Lists them."""
        return self._output(*self._ARGS, "--list-services", f"http://{target}").split()

    def documentation(self, target: str, symbol: str) -> str:
        """Assembles what grpcurl would show: the comments, from the file that reflection returns for the symbol."""
        response = self.call(target, _REFLECT, {"file_containing_symbol": symbol})
        packed = response.json["fileDescriptorResponse"]["fileDescriptorProto"]
        files = [FileDescriptorProto.FromString(base64.b64decode(each)) for each in packed]
        return "".join(location.leading_comments for file in files for location in file.source_code_info.location)


CURLS: tuple[type[Curl], ...] = (Grpcurl, BufCurl)
