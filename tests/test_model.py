"""The words everybody uses: what keys remember of an address."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import example, given
from hypothesis import strategies as st

from streamdetect.model import address_key_of, address_of

LIKE_ADDRESSES = st.from_regex(r"[-+ _]?[0-9]{1,4}(\.[-+ _]?[0-9]{1,4}){2,4}\s?", fullmatch=True)


@given(st.none() | st.text() | LIKE_ADDRESSES)
@example("1.2.3.256")
@example("1.2.3")
@example("010.0.0.1")
@example("1.2.3.4.5")
@example("٤.1.1.1")
@example("1_0.1.1.1")
@example("0." * 5_000 + "1")
@example("1.1.1." + "1" * 5_000)
def test_every_address_comes_back_from_its_target(address: str | None) -> None:
    """So that no two addresses share a target: what only looks like an IPv4 address stays the text it is."""
    target = address_key_of(address)
    assert address_of(target) == address
    if isinstance(target, int):
        assert str(IPv4Address(int(target))) == address


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_remembered_as_its_number(address: IPv4Address) -> None:
    """32 bytes instead of 64."""
    target: object = address_key_of(str(address))
    assert target == int(address)
