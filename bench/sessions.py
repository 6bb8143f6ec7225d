"""What all comparisons of catraca share: sessions to ask about, and how to ask."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from math import inf
from typing import TypeVar

from google.protobuf.message import Message

from bench.checkouts import Checkout
from bench.closed_loop import Client, Load
from bench.processes import serving
from catraca.v1.session_service_pb2 import (
    BatchValidateSessionsRequest,
    BatchValidateSessionsResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    ValidateSessionRequest,
    ValidateSessionResponse,
)
from catraca_server.redis.url import StoreUrl

_SERVICE = "/catraca.v1.SessionService"

_Response = TypeVar("_Response", bound=Message)


def asking(
    requests: Iterable[Message],
    response_type: type[_Response],
    check: Callable[[_Response], bool],
    *,
    once: bool = False,
) -> Load:
    """Describes calls of the RPC with this request type and this response type."""
    method = response_type.DESCRIPTOR.name.removesuffix("Response")
    serialized = [request.SerializeToString() for request in requests]
    return Load(f"{_SERVICE}/{method}", serialized, lambda body: check(response_type.FromString(body)), once)


def login(user_id: str) -> CreateSessionRequest:
    """Describes a session as large as most are."""
    return CreateSessionRequest(user_id=user_id, attributes={"device": "phone", "plan": "family"})


def log_in(count: int, checkout: Checkout, store_url: StoreUrl, *, core: int | None) -> Sequence[CreateSessionResponse]:
    """Logs in this many users, once each."""
    logins = [login(f"user-{number}") for number in range(count)]
    with (
        serving(checkout.serve(store_url), core=core) as server,
        closing(Client(server.port, connections=4)) as client,
    ):
        return ask(client, logins, CreateSessionResponse)


def ask(client: Client, requests: Iterable[Message], response_type: type[_Response]) -> list[_Response]:
    """Makes each of these calls once and returns the answers, in the order in which they came."""
    answers: list[_Response] = []

    def keep(answer: _Response) -> bool:
        answers.append(answer)
        return True

    client.run(asking(requests, response_type, keep, once=True), streams=16, seconds=inf)
    return answers


def single_validations(tokens: Iterable[str]) -> Load:
    """One token a call, all of them good."""
    return asking(
        [ValidateSessionRequest(token=token) for token in tokens], ValidateSessionResponse, lambda each: each.valid
    )


def batched_validations(tokens: Sequence[str], size: int, *, once: bool = False) -> Load:
    """This many tokens a call, all of them good."""

    def check(response: BatchValidateSessionsResponse) -> bool:
        return len(response.responses) == size and all(each.valid for each in response.responses)

    batches = [
        BatchValidateSessionsRequest(
            requests=[ValidateSessionRequest(token=token) for token in tokens[start : start + size]]
        )
        for start in range(0, len(tokens), size)
    ]
    return asking(batches, BatchValidateSessionsResponse, check, once=once)
