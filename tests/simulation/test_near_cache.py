"""Near caches in virtual time: no schedule makes one answer "valid" too late; without any one rule, one does.

The rules are those of the client, whose real code runs, and the promises of the service, which is a model.

`CATRACA_SIMULATION_SEED=123 make test ARGS="tests/simulation"` plays one schedule again.
"""

import os

import pytest
from tests.support import near_cache_world
from tests.support.near_cache_rules import Change, Rules, changed, rules
from tests.support.near_cache_world import Breach, World

LONG = os.environ.get("CATRACA_TEST_LONG") == "1"
ONE = os.environ.get("CATRACA_SIMULATION_SEED")
BATCHES = 20
SEEDS_A_BATCH = 5_000 if LONG else 25
SEEDS_TO_CATCH = 2_000
SECONDS = 40.0

OURS = rules()

LATE_PING = "                self._answers.lease.ping(pong.nonce, self._clock())\n"
LATE_LEASE = "                lease_until = self.lease.until\n"
OVERTAKEN = "and not self._"


def play(seed: int, of: Rules = OURS) -> int:
    """Plays a schedule. Returns how many answers were given near; raises Breach."""
    world = World(seed, of)
    world.run(SECONDS)
    return world.hits


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_answer_comes_too_late(batch: int) -> None:
    """Whatever is delayed, lost, reordered, stalled, reset or failed over: the bound holds, and memory is bounded."""
    hits = 0
    for seed in [int(ONE)] if ONE else range(batch * SEEDS_A_BATCH, (batch + 1) * SEEDS_A_BATCH):
        try:
            hits += play(seed)
        except Breach as breach:
            again = f'CATRACA_SIMULATION_SEED={seed} make test ARGS="tests/simulation"'
            pytest.fail(f"{breach}\nplay it again: {again}")
    assert hits, "the simulation is of no use without answers from the near cache"


# Each rule, and the changes of the code that take it away.
WITHOUT: dict[str, list[Change]] = {
    "the age counts": [("_lease", "sent_at - age_seconds + LEASE", "sent_at + LEASE")],
    "a lease ends soon": [("_lease", "LEASE_SECONDS = 2.0", "LEASE_SECONDS = 8.0")],
    "a ping counts from before it is sent": [
        ("_watching", "                pong = response.pong\n", "                pong = response.pong\n" + LATE_PING)
    ],
    "no hit without a live lease": [("_near_cache", "if now < lease_until:", "if True:")],
    "no hit past its time": [("_near_cache", "if now < until:", "if True:")],
    "its time counts from before it was asked for": [("_near_cache", "until = fill.started", "until = self._clock()")],
    "the lease is read before the entry": [
        ("_near_cache", "                now = self._clock()\n", "                now = self._clock()\n" + LATE_LEASE)
    ],
    "the clock is read last": [
        ("_near_cache", "        lease_until = self.lease.until\n", "        now = self._clock()\n" + LATE_LEASE[8:]),
        ("_near_cache", "                now = self._clock()\n", ""),
    ],
    "events drop sessions": [
        ("_near_cache", "self._drop_session(session_id)\n            elif", "pass\n            elif")
    ],
    "events drop users": [("_near_cache", "self._drop_user(user_id)\n            else", "pass\n            else")],
    "an event overtakes the answer": [
        ("_near_cache", f"{OVERTAKEN}sessions_seen.named_after(session.session_id, fill.seen)", "")
    ],
    "a user's event overtakes it": [
        ("_near_cache", f"{OVERTAKEN}users_seen.named_after(session.user_id, fill.seen)", "")
    ],
    "a reset drops all": [("_near_cache", "self._resets += 1\n            self._begin_anew()", "self._resets += 1")],
    "a change of one's own makes answers under way worthless": [("_near_cache", "and fill.voided == self._voided", "")],
    "a new primary settles": [("_near_cache", "min(cache_ttl_seconds, LEASE_SECONDS) if", "cache_ttl_seconds if")],
    "a lost stream is resumed": [("_watching", "WatchStart(cursor=self._cursor, ", "WatchStart(")],
    "a cursor is not left behind before its reset": [
        ("_watching", "self._cursor = self._begun_after or response", "self._cursor = response")
    ],
    "updates are watched": [("_watching", "    events.SESSION_EVENT_TYPE_UPDATED,\n", "")],
    "revocations are watched": [("_watching", "    events.SESSION_EVENT_TYPE_REVOKED,\n", "")],
    "a client sees what it revoked": [("_near_cache", "self._drop_session(entry[1].session.session_id)", "pass")],
    "what is kept is bounded": [("_near_cache", "                self._make_room()\n", "")],
}


@pytest.mark.skipif(ONE is not None, reason="one schedule is played")
@pytest.mark.parametrize("rule", WITHOUT)
def test_each_rule_is_needed(rule: str) -> None:
    """With a rule taken away, some schedule breaks a promise."""
    without = rules(*WITHOUT[rule])
    for seed in range(SEEDS_TO_CATCH):
        try:
            play(seed, without)
        except Breach:
            return
    pytest.fail(f"{SEEDS_TO_CATCH} schedules hold without the rule: {rule}")


UPDATED, REVOKED = "SESSION_EVENT_TYPE_UPDATED", "SESSION_EVENT_TYPE_REVOKED"

# What the service promises, and the changes of the model that break it.
BROKEN: dict[str, list[tuple[str, str]]] = {
    "an end is told": [
        (
            "            if user_id:\n",
            f"            if kind == events.{REVOKED}:\n                pass\n            elif user_id:\n",
        )
    ],
    "the end of all is told": [("store.feed.append(events.SessionEvent(type=kind, user_id=user_id))", "pass")],
    "an update is told": [
        (
            "            if user_id:\n",
            f"            if kind == events.{UPDATED}:\n                pass\n            elif user_id:\n",
        )
    ],
    "it is told before it is acknowledged": [
        (
            "self.after(self.chance.uniform(0, 0.3), tell)",
            "acknowledge()\n        self.after(self.chance.uniform(0, 30), tell)",
        )
    ],
    "it is made before it is told": [
        (
            "        make()\n        self.after(self.chance.uniform(0, 0.3), tell)",
            "        tell()\n        self.after(1, make)\n        self.after(1, acknowledge)",
        )
    ],
    "a reader misses nothing in silence": [("if before < self.store.trimmed:", "if False:")],
    "a cursor past which was trimmed is reset": [("server.store.trimmed <= position <=", "0 <= position <=")],
    "a cursor of another epoch is reset": [
        ("continues = resuming and epoch == server.store.epoch and", "continues = resuming and")
    ],
    "what came after a cursor is sent": [("        elif continues:\n", "        elif False:\n")],
    "a new primary is a reset": [
        ("            stream.reset(pb.WATCH_RESET_REASON_EPOCH_CHANGED)\n", "            pass\n")
    ],
    "a slow consumer is reset": [("self.reset(pb.WATCH_RESET_REASON_SLOW_CONSUMER)", "self._generation += 1")],
    "the age is that of the last reading to the end": [("int((self._world.now - self._server.read_at) * 1e9)", "0")],
    "events come ahead of the pong": [
        (
            "        self._down(pb.WatchSessionsResponse(pong=pong))",
            "        self._client.receive(self, pb.WatchSessionsResponse(pong=pong))",
        )
    ],
    "a replaced primary is not believed for long": [("DETECTION_SECONDS = 1.0", "DETECTION_SECONDS = 15.0")],
}


@pytest.mark.skipif(ONE is not None, reason="one schedule is played")
@pytest.mark.parametrize("promise", BROKEN)
def test_each_promise_of_the_service_is_needed(promise: str) -> None:
    """With one broken, some schedule makes a near cache answer what it must not."""
    broken = changed(near_cache_world, [(promise, there, instead) for there, instead in BROKEN[promise]])
    for seed in range(SEEDS_TO_CATCH):
        try:
            broken["World"](seed, OURS).run(SECONDS)
        except broken["Breach"]:
            return
    pytest.fail(f"{SEEDS_TO_CATCH} schedules hold without the promise: {promise}")
