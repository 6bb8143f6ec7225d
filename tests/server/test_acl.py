"""The ACL user that docs/operations.md describes: enough for every operation, and no more."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.cluster import Cluster
from tests.support.service import ServeProcess
from tests.support.valkey import Server, Valkey
from tests.support.wire import TIMEOUT_SECONDS, stub_of

from catraca import SessionClient, errors
from catraca.v1 import session_service_pb2 as pb

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
CALL_SECONDS = 5.0
"""More than the store's timeout, which a slow machine must not exceed."""

ONLY_IN_CLUSTERS = {"asking", "cluster|nodes", "wait"}
"""Commands that only clusters and replicas need."""


def documented_rules() -> list[str]:
    """Returns the key patterns and commands that an ACL user needs, as the document has them."""
    (sentence,) = re.findall(r"An ACL user needs (.*?)\n\n", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return re.findall(r"[~+][^\s`]+", sentence)


def commands(rules: list[str]) -> set[str]:
    """Returns the commands among the rules of an ACL user."""
    return {word[1:] for word in rules if word[0] == "+"}


def used_on(server: Server) -> set[str]:
    """Returns the commands that a server has run."""
    return {name.partition("_")[2] for name in server.client.info("commandstats")}


def watch(target: str) -> None:
    """Watches sessions until something happens."""
    with stub_of(target) as stub, SessionClient(target, timeout=CALL_SECONDS) as sessions:
        watch = stub.WatchSessions(iter([pb.WatchSessionsRequest(start=pb.WatchStart())]), timeout=TIMEOUT_SECONDS)
        cursor = next(watch).opened.cursor
        sessions.create("ana")
        assert next(watch).event.user_id == "ana"
        resume = pb.WatchSessionsRequest(start=pb.WatchStart(cursor=cursor))
        again = stub.WatchSessions(iter([resume]), timeout=TIMEOUT_SECONDS)
        assert next(again).opened.cursor == cursor
        assert next(again).event.user_id == "ana"


def live_a_life(target: str) -> None:
    """Calls every RPC, in all ways that make the store run other commands."""
    with SessionClient(target, timeout=CALL_SECONDS) as sessions:
        logins = [sessions.create("ana", idle_timeout=timedelta(seconds=1)) for _ in range(4)]
        assert len(logins[-1].evicted_session_ids) == 1
        session = logins[-1].session
        assert sessions.validate(logins[-1].token)
        sessions.update(session.session_id, set_attributes={"device": "phone"})
        sessions.update(session.session_id, absolute_expire_time=session.absolute_expire_time + timedelta(hours=1))
        token = sessions.rotate(logins[-1].token).token
        assert len(list(sessions.list_sessions("ana"))) == 3
        assert sessions.get(session.session_id).attributes == {"device": "phone"}
        assert sessions.revoke(token=token)
        watch(target)
        assert sessions.revoke_user_sessions("ana") == 3


def test_the_documented_acl_user_can_do_everything(own_valkey: Valkey) -> None:
    """Every RPC works for that user, and every command that it may run is needed."""
    rules = documented_rules()
    assert len(rules) > 20
    own_valkey.command("ACL", "SETUSER", "catraca", "on", ">secret", *rules)
    settings = {"CATRACA_STORE_URL": f"unix://catraca@{own_valkey.socket}", "CATRACA_STORE_PASSWORD": "secret"}
    with ServeProcess(settings, max_sessions_per_user="3") as limited:
        live_a_life(limited.target)
    with (
        ServeProcess(settings) as unlimited,
        SessionClient(unlimited.target, timeout=CALL_SECONDS) as sessions,
    ):
        sessions.create("bia")
    assert own_valkey.command("ACL", "LOG") == []
    # DEL ends sessions that are older than these, SELECT is for another database than the first.
    assert commands(rules) - used_on(own_valkey) == {"del", "select", *ONLY_IN_CLUSTERS}


def test_the_documented_acl_user_is_enough_in_a_cluster(valkey_cluster: Cluster) -> None:
    """Also while a slot moves, and with replica_acks."""
    valkey_cluster.renew()
    rules = documented_rules()
    for node in valkey_cluster.nodes:
        node.command("ACL", "SETUSER", "catraca", "on", ">secret", *rules)
        node.command("CONFIG", "RESETSTAT")
        node.command("ACL", "LOG", "RESET")
    index = "user-sessions:ana"
    target = next(node for node in valkey_cluster.primaries if node is not valkey_cluster.node_of(index))
    valkey_cluster.moving(index, target).begin()
    url = valkey_cluster.url.replace("://", "://catraca@")
    with ServeProcess(
        store_url=url, store_password="secret", store_timeout="2s", replica_acks="1", max_sessions_per_user="3"
    ) as service:
        live_a_life(service.target)
    assert all(node.command("ACL", "LOG") == [] for node in valkey_cluster.nodes)
    assert set().union(*map(used_on, valkey_cluster.nodes)) >= ONLY_IN_CLUSTERS


@pytest.mark.parametrize("pattern", ["~session:*", "~user-sessions:*", "~session-feed"])
def test_a_missing_key_pattern_is_unavailable(own_valkey: Valkey, pattern: str) -> None:
    """A login that the store does not allow is UNAVAILABLE: not acknowledged, and not a defect."""
    own_valkey.command("ACL", "SETUSER", "catraca", "on", ">secret", *(set(documented_rules()) - {pattern}))
    with (
        ServeProcess(store_url=f"unix://catraca@{own_valkey.socket}", store_password="secret") as service,
        SessionClient(service.target, timeout=CALL_SECONDS) as sessions,
        pytest.raises(errors.Unavailable),
    ):
        sessions.create("ana")
