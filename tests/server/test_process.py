"""The running `catraca serve`, called from outside by reflection alone, as the README shows it."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.curl import Curl
from tests.support.service import ServeProcess, is_known_valid
from tests.support.valkey import BINARY, WHY_MISSING, Valkey
from tests.support.waiting import eventually

from catraca import SessionClient, errors

pytestmark = pytest.mark.skipif(BINARY is None, reason=WHY_MISSING)

CREATE = "catraca.v1.SessionService/CreateSession"
VALIDATE = "catraca.v1.SessionService/ValidateSession"
GET = "catraca.v1.SessionService/GetSession"
REVOKE = "catraca.v1.SessionService/RevokeSession"
HEALTH = "grpc.health.v1.Health/Check"

MINTED = re.compile(r"ctr_[0-9A-Za-z]{71}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """The service as `make run` starts it, with a data directory of its own."""
    with ServeProcess(data_dir=str(tmp_path_factory.mktemp("state"))) as process:
        yield process


def test_a_newcomer_creates_and_validates_a_session(service: ServeProcess, curl: Curl) -> None:
    """CreateSession and ValidateSession return the API's JSON; only the first has the token."""
    created = curl.call(service.target, CREATE, {"user_id": "12345", "ttl": "60s"})
    assert created.status == "OK"
    assert created.json.keys() == {"token", "session"}
    token, session = created.json["token"], created.json["session"]
    assert MINTED.fullmatch(token)
    times = ("createTime", "lastActiveTime", "expireTime", "absoluteExpireTime")
    assert session.keys() == {"sessionId", "userId", *times, "idleTimeout", "etag"}
    assert session["userId"] == "12345"
    assert session["sessionId"] == token[4:26]
    assert session["idleTimeout"] == "1800s"
    assert all(MOMENT.fullmatch(session[name]) for name in times)
    assert session["createTime"] == session["lastActiveTime"] < session["expireTime"]
    assert session["expireTime"] == session["absoluteExpireTime"]

    validated = curl.call(service.target, VALIDATE, {"token": token})
    assert validated.status == "OK"
    assert validated.json.keys() == {"valid", "session", "cacheTtl"}
    assert validated.json["valid"] is True
    assert validated.json["session"] == session
    assert 0 < float(validated.json["cacheTtl"].removesuffix("s")) <= 60


def test_an_invalid_token_is_not_an_error(service: ServeProcess, curl: Curl) -> None:
    """For a malformed, an unknown and a revoked token the status is OK, and the response has the reason."""
    token = curl.call(service.target, CREATE, {"user_id": "12345"}).json["token"]
    assert curl.call(service.target, REVOKE, {"token": token}).json == {"revoked": True}
    assert curl.call(service.target, REVOKE, {"token": token}).json == {}
    reasons = {token: "NOT_FOUND", "never-seen-before": "NOT_FOUND", "ctr_": "MALFORMED", "short": "MALFORMED"}
    for presented, reason in reasons.items():
        response = curl.call(service.target, VALIDATE, {"token": presented})
        assert (response.status, response.json) == ("OK", {"invalidReason": f"INVALID_REASON_{reason}"})


def test_errors_have_their_status(service: ServeProcess, curl: Curl) -> None:
    """The status says what is wrong, and the message names the field."""
    missing = curl.call(service.target, VALIDATE)
    assert (missing.status, missing.message) == ("INVALID_ARGUMENT", "token: must be set")
    assert curl.call(service.target, GET, {"session_id": "0" * 22}).status == "NOT_FOUND"


def test_reflection_lists_the_services(service: ServeProcess, curl: Curl) -> None:
    """`list` shows the service, health and reflection."""
    listed = curl.services(service.target)
    expected = ["catraca.v1.SessionService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    assert sorted(listed) == expected


def test_reflection_documents_the_services(service: ServeProcess, curl: Curl) -> None:
    """`describe` shows the comments of the API, of the service as of one method."""
    assert "Caller roles" in curl.documentation(service.target, "catraca.v1.SessionService")
    assert "Reads one session by its public id" in curl.documentation(
        service.target, "catraca.v1.SessionService.GetSession"
    )
    assert "worthless as a token" in curl.documentation(service.target, "catraca.v1.Session")


def test_reflection_can_be_turned_off(curl: Curl) -> None:
    """With reflection off the API is not described, and the service works."""
    with ServeProcess(store_url="memory:", reflection="false") as process:
        with pytest.raises(AssertionError, match=r"(?i)reflection|unimplemented"):
            curl.services(process.target)
        with SessionClient(process.target, timeout=20) as sessions:
            assert sessions.validate(sessions.create("12345").token)


def test_health_by_name(service: ServeProcess, curl: Curl) -> None:
    """The server as a whole, the service and the store have a health; any other name is not found."""
    for name in ("", "catraca.v1.SessionService", "store"):
        response = curl.call(service.target, HEALTH, {"service": name})
        assert (response.status, response.json) == ("OK", {"status": "SERVING"}), name
    assert curl.call(service.target, HEALTH, {"service": "catraca"}).status == "NOT_FOUND"


def test_health_of_the_store_follows_the_store(own_valkey: Valkey) -> None:
    """`store` changes when the store dies and returns, for Check and for Watch; the others stay SERVING."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with ServeProcess(store_url=own_valkey.url) as process, grpc.insecure_channel(process.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # its types omit the methods

        def status(name: str) -> Any:
            return health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status

        watch = health.Watch(health_pb2.HealthCheckRequest(service="store"))
        assert next(watch).status == status("store") == serving
        own_valkey.kill()
        assert next(watch).status == status("store") == not_serving
        assert status("") == status("catraca.v1.SessionService") == serving
        own_valkey.start()
        assert next(watch).status == status("store") == serving
        watch.cancel()


def test_the_store_may_die_and_return_while_serving(own_valkey: Valkey) -> None:
    """While the store is down calls are UNAVAILABLE, never "not valid"; when it is back the session is valid again."""
    with ServeProcess(store_url=own_valkey.url) as process, SessionClient(process.target, timeout=10) as sessions:
        token = sessions.create("12345").token
        own_valkey.kill()
        with pytest.raises(errors.Unavailable) as caught:
            sessions.validate(token)
        assert caught.value.reason == "STORE_UNAVAILABLE"
        own_valkey.start()
        eventually(lambda: is_known_valid(sessions, token), "the session is valid again")
    assert "store disconnected" in process.log
    assert process.log.count("store connected") == 2
