"""Address keys: the compact form of an address in the keys of the detector."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import example, given
from hypothesis import strategies as st

from streamdetect.model import address_key_of, address_of

IPV4_LIKE = st.from_regex(r"[-+ _]?[0-9]{1,4}(\.[-+ _]?[0-9]{1,4}){2,4}\s?", fullmatch=True)


@given(st.none() | st.text() | IPV4_LIKE)
@example("1.2.3.256")
@example("256.0.0.0")
@example("-1.0.0.0")
@example("1.2.3")
@example("010.0.0.1")
@example("1.2.3.4.5")
@example("٤.1.1.1")
@example("1_0.1.1.1")
@example("0." * 5_000 + "1")
@example("1.1.1." + "1" * 5_000)
def test_every_address_round_trips(address: str | None) -> None:
    """No two addresses share an address key: text that only resembles an IPv4 address stays text."""
    key = address_key_of(address)
    assert address_of(key) == address
    if isinstance(key, int):
        assert str(IPv4Address(int(key))) == address


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_becomes_an_integer(address: IPv4Address) -> None:
    """It takes 32 bytes instead of 64."""
    key: object = address_key_of(str(address))
    assert key == int(address)
