"""`catraca demo`: the story that catraca grew from, played against a service that it starts itself."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from catraca import SessionClient, Validation
from catraca.cli import EXIT_FAILED, EXIT_YES
from catraca.cli.text import moment

USER = "12345"
TOKEN = "jwt_token_exemplo_abc123"  # noqa: S105  an example for the demo
BAR_WIDTH = 30
_READY = "listening on "


class _Stage:
    """Prints with colours and a moving bar on a terminal, plainly on a pipe."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._coloured = self._live and "NO_COLOR" not in os.environ
        self._scenes = itertools.count(1)

    def scene(self, text: str) -> None:
        print(f"\n{self._paint('1', f'{next(self._scenes)}. {text}')}")

    def say(self, text: str) -> None:
        print(f"   {text}")

    def validation(self, validation: Validation) -> None:
        session = validation.session
        if session is None:
            assert validation.reason is not None
            self.say(self._paint("31", "✗ denied") + f"      {validation.reason.name}")
            return
        self.say(
            self._paint("32", "✓ authorised") + f"  user {session.user_id}, logged in {moment(session.create_time)}"
        )
        for key, value in sorted(session.attributes.items()):
            self.say(f"              {key} = {value}")

    def wait(self, seconds: float) -> None:
        if not self._live:
            print(f"   … {seconds:g} s pass …", flush=True)
            time.sleep(seconds)
            return
        for step in range(BAR_WIDTH + 1):
            bar = "█" * step + "░" * (BAR_WIDTH - step)
            print(f"\r   {bar} {seconds * step / BAR_WIDTH:.1f} s", end="", flush=True)
            if step < BAR_WIDTH:
                time.sleep(seconds / BAR_WIDTH)
        print()

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text


def play(ttl: timedelta) -> int:
    """Plays the demo; the first session lives for `ttl`. Returns 0 if everything went as expected."""
    stage = _Stage()
    for name in [each for each in os.environ if each.startswith("CATRACA_")]:
        # They are meant for another service: the demo's has no TLS, and wants no key.
        del os.environ[name]
    print("Starting a service with an embedded store, only for this demo …", flush=True)
    with _service() as target, SessionClient(target, use_proxy=False) as sessions:
        print(f"It listens on {target}.")
        went_well = [_brought_token(stage, sessions, ttl), _minted_token(stage, sessions)]
    print("\nThat was all. `catraca serve` starts a service that stays.")
    return EXIT_YES if all(went_well) else EXIT_FAILED


def _brought_token(stage: _Stage, sessions: SessionClient, ttl: timedelta) -> bool:
    stage.scene(f"User {USER} logs in with a token of their own, {TOKEN}, for {ttl.total_seconds():g} s")
    login = sessions.create(USER, ttl=ttl, token=TOKEN, attributes={"device": "phone", "app": "demo"})
    stage.say(f"session {login.session.session_id}")
    stage.scene("They click: is the token good, and whose is it?")
    before = sessions.validate(TOKEN)
    stage.validation(before)
    stage.scene("They go away, and the session ends by itself")
    # A little longer than it lives, because the clocks differ.
    stage.wait(ttl.total_seconds() + 0.1)
    after = sessions.validate(TOKEN)
    stage.validation(after)
    return bool(before) and not after


def _minted_token(stage: _Stage, sessions: SessionClient) -> bool:
    stage.scene("They log in again, and the service mints the token")
    login = sessions.create(USER, ttl=timedelta(minutes=5))
    stage.say(f"{login.token[:8]}…  ({len(login.token)} characters; Redis has only a digest of it)")
    good = sessions.validate(login.token)
    stage.validation(good)
    stage.scene("Somebody presents it as user 67890")
    stolen = sessions.validate(login.token, user_id="67890")
    stage.validation(stolen)
    stage.scene("They log out, and click once more")
    revoked = sessions.revoke(token=login.token)
    stage.say("revoked" if revoked else "there was nothing to revoke")
    after = sessions.validate(login.token)
    stage.validation(after)
    return bool(good) and not stolen and revoked and not after


@contextmanager
def _service() -> Iterator[str]:
    """Runs `catraca serve` on a free port with a store of its own, and yields where it listens."""
    with tempfile.TemporaryDirectory(prefix="catraca-") as data_dir:
        process = subprocess.Popen(  # noqa: S603  our own command
            [sys.executable, "-m", "catraca", "serve", "--port", "0", "--data-dir", data_dir],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        log = []
        try:
            for line in process.stderr:
                log.append(line)
                if _READY in line:
                    yield line.partition(_READY)[2].split(";")[0].strip()
                    break
            else:
                print("".join(log) or "the service did not start", end="", file=sys.stderr)
                # Its log says why. A service that a signal ended has no status of its own.
                raise SystemExit(max(process.wait(), 0) or EXIT_FAILED)
        finally:
            process.terminate()
            process.communicate()
