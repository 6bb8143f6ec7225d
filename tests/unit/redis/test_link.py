"""How reads of many keys are packed."""

from hiredis import pack_command
from hypothesis import given, strategies as st

from catraca_server.redis.link import KeyReads
from catraca_server.redis.multiplexer import Command

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(keys, max_size=5) | st.lists(st.text("ab", max_size=30), max_size=5))
def test_reads_are_packed_as_single_commands_are(chosen: list[str]) -> None:
    """Byte for byte, whatever the keys are made of; a length counts bytes and not characters."""
    reads = KeyReads("GET", "PEXPIRETIME")
    one_by_one: list[Command] = [(name, key) for key in chosen for name in ("GET", "PEXPIRETIME")]
    assert reads.pack(chosen) == b"".join(map(pack_command, one_by_one))
    assert [command for key in chosen for command in reads.commands(key)] == one_by_one
    assert reads.count == 2
