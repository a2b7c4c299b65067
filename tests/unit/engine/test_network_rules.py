from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.engine.network import instance_of, rules
from magsd.engine.network.layout import Layout, interface_instance, table_instance

LAYOUT = Layout("ab12", IPv4Network("198.18.0.0/16"))


def table(**changes):
    given = {"denied": rules.denied_networks(LAYOUT, ()), **changes}
    return rules.host_table(LAYOUT, **given)


def chain(text, name):
    return text.split(f"chain {name} {{")[1].split("\n  }")[0]


def test_an_instance_is_the_same_at_every_start_and_another_for_each_directory():
    assert instance_of(Path("/var/lib/mags")) == instance_of(Path("/var/lib/../lib/mags"))
    assert instance_of(Path("/var/lib/mags")) != instance_of(Path("/srv/mags"))
    assert len(instance_of(Path("/var/lib/mags"))) == 4


@given(st.integers(1, LAYOUT.capacity))
def test_slots_have_blocks_of_their_own_and_names_that_fit(index):
    block = IPv4Network((LAYOUT.host_address(index), 30), strict=False)
    assert LAYOUT.router_address(index) in block
    assert block.subnet_of(LAYOUT.slot_net)
    assert LAYOUT.dns_address not in block
    assert LAYOUT.host_address(index - 1) not in block
    name = LAYOUT.interface(index)
    assert len(name) <= 15
    assert LAYOUT.index_of(name) == index
    assert interface_instance(name) == "ab12"


def test_names_of_others_are_nobodys():
    assert LAYOUT.index_of("mags0000-1") is None
    assert LAYOUT.index_of(LAYOUT.dns_interface) is None
    assert interface_instance(LAYOUT.dns_interface) == "ab12"
    assert interface_instance("magsab12") is None
    assert interface_instance("magsab12-1x") is None
    assert table_instance(LAYOUT.table) == "ab12"
    assert table_instance("mags_filter") is None


@pytest.mark.parametrize(
    "address",
    [
        "0.1.2.3",
        "10.0.2.2",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.7.7",
    ],
)
def test_private_ranges_and_the_slots_are_denied(address):
    denied = rules.denied_networks(LAYOUT, ())
    assert any(IPv4Address(address) in network for network in denied)


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.1", "203.0.113.80", "1.1.1.1"])
def test_documentation_ranges_and_the_internet_are_not_denied(address):
    denied = rules.denied_networks(LAYOUT, ())
    assert not any(IPv4Address(address) in network for network in denied)


@given(
    st.lists(
        st.builds(
            lambda address, prefix: IPv4Network((address, prefix), strict=False),
            st.ip_addresses(v=4),
            st.integers(8, 32),
        ),
        max_size=20,
    )
)
def test_what_the_host_is_connected_to_is_denied_and_no_two_overlap(connected):
    denied = rules.denied_networks(LAYOUT, connected)
    for network in connected:
        assert any(network.subnet_of(other) for other in denied)
    assert all(a.broadcast_address < b.network_address for a, b in pairwise(denied))


def test_the_table_replaces_the_one_that_was_there_in_one_transaction():
    lines = [line for line in table().splitlines() if line and not line.startswith(" ")]
    assert lines == [
        "table inet mags_ab12",
        "delete table inet mags_ab12",
        "table inet mags_ab12 {",
        "}",
    ]


def test_the_allow_list_comes_before_the_denied_and_after_the_other_slots():
    allowances = [rules.Allowance.parse("10.1.0.0/16"), rules.Allowance.parse("10.2.2.2:443")]
    text = chain(table(allowances=allowances), "from_slot")
    order = [
        text.index("meta nfproto != ipv4 drop"),
        text.index('oifname "mags*" jump refuse'),
        text.index("ip daddr 10.1.0.0/16 accept"),
        text.index("ip daddr 10.2.2.2/32 meta l4proto { tcp, udp } th dport 443 accept"),
        text.index("ip daddr @denied jump refuse"),
    ]
    assert order == sorted(order)


def test_the_host_takes_nothing_from_slots_but_dns():
    rules_of_chain = [line.strip() for line in chain(table(), "to_host").splitlines() if line]
    assert rules_of_chain == [
        "meta nfproto != ipv4 drop",
        "ip saddr != 198.18.0.0/16 drop",
        "ip daddr 198.18.0.1 meta l4proto { tcp, udp } th dport 53 jump to_dns",
        "jump refuse",
    ]


def test_an_uplink_that_forwards_only_for_slots_lets_nothing_else_in():
    guarded = rules.uplinks_table(["eth0", "wg0"], is_router=False)
    assert 'elements = { "eth0", "wg0" }' in guarded
    assert "iifname @opened ct state new drop" in guarded
    assert "drop" not in rules.uplinks_table(["eth0"], is_router=True)


@pytest.mark.parametrize(
    ("text", "network", "port"),
    [
        ("10.1.0.0/16", "10.1.0.0/16", None),
        ("10.1.2.3", "10.1.2.3/32", None),
        (" 10.1.2.3:443 ", "10.1.2.3/32", 443),
        ("10.1.0.0/16:53", "10.1.0.0/16", 53),
    ],
)
def test_allowances_are_networks_with_or_without_a_port(text, network, port):
    assert rules.Allowance.parse(text) == rules.Allowance(IPv4Network(network), port)


@pytest.mark.parametrize(
    "text",
    ["", "10.1.2.3:", "10.1.2.3:0", "10.1.2.3:65536", "10.1.0.1/16", "host", "::1", "1.2.3.4:x; }"],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the message is ipaddress's
        rules.Allowance.parse(text)
