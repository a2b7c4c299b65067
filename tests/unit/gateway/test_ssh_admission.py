"""Who may come in beside those who are there."""

import pytest

from magsd.gateway.ssh_admission import Admission, peer_of
from magsd.gateway.ssh_settings import SshSettings


def admission(**limits):
    return Admission(SshSettings(host_key=b"", **limits))


def known(house, address):
    visitor = house.admit(address).visitor
    house.recognise(visitor)
    return visitor


def test_so_many_and_no_more_until_one_leaves():
    house = admission(connections_max=2)
    first = known(house, "192.0.2.1")
    known(house, "192.0.2.2")
    assert house.admit("192.0.2.3") is None
    house.leave(first)
    assert house.count == 1
    assert house.admit("192.0.2.3") is not None


def test_one_peer_does_not_take_all_places():
    house = admission(connections_per_peer_max=2)
    first = house.admit("2001:db8::1").visitor
    house.admit("2001:db8::2")
    assert house.admit("2001:db8::3") is None
    assert house.admit("2001:db8:0:1::1") is not None
    house.leave(first)
    assert house.admit("2001:db8::3") is not None


def test_the_oldest_handshake_of_whoever_has_most_makes_way():
    house = admission(handshakes_max=3)
    assert house.admit("192.0.2.1").makes_way is None
    oldest = house.admit("192.0.2.2").visitor
    second = house.admit("192.0.2.2").visitor
    assert house.admit("192.0.2.3").makes_way is oldest
    house.leave(oldest)
    # Each has one now: the one that came first of them goes.
    assert house.admit("192.0.2.4").makes_way.peer == "192.0.2.1"
    house.leave(second)


def test_who_has_shown_a_key_makes_no_way():
    house = admission(handshakes_max=1)
    for _ in range(5):
        known(house, "192.0.2.1")
    stranger = house.admit("192.0.2.2").visitor
    assert house.admit("192.0.2.1").makes_way is stranger


def test_who_makes_way_and_leaves_is_counted_once():
    house = admission(handshakes_max=1, connections_max=2)
    first = house.admit("192.0.2.1").visitor
    second = house.admit("192.0.2.1")
    assert second.makes_way is first
    assert house.count == 2
    house.leave(first)
    house.recognise(second.visitor)
    house.leave(second.visitor)
    assert house.count == 0
    assert house.admit("192.0.2.1").makes_way is None


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("somewhere", "somewhere"),
    ],
)
def test_whose_an_address_is(address, peer):
    assert peer_of(address) == peer
