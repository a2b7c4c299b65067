from ipaddress import IPv4Network

import dns.exception
import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.engine.dns_forwarder.screen import (
    Limits,
    Policy,
    parse_policy,
    parse_resolvers,
    refusal,
)

POLICY = Policy(
    denied=(IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.0/24")),
    allowed=(IPv4Network("10.9.0.0/16"),),
)


def response(*answer, name="x.example."):
    message = dns.message.make_response(dns.message.make_query(name, "A"))
    message.answer = [dns.rrset.from_text(name, 60, "IN", kind, *data) for kind, *data in answer]
    return message


@pytest.mark.parametrize(
    ("address", "is_permitted"),
    [
        ("1.1.1.1", True),
        ("203.0.113.80", True),
        ("10.1.1.1", False),
        ("10.9.1.1", True),
        ("192.0.2.7", False),
        ("2606:4700::1111", True),
        ("::1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("::ffff:10.1.1.1", False),
        ("::ffff:1.1.1.1", True),
        ("64:ff9b::a01:101", False),
        ("2002:a01:101::1", False),
    ],
)
def test_an_address_is_judged_by_where_it_leads(address, is_permitted):
    assert POLICY.permits(address) is is_permitted


def test_public_answers_stay_as_they_are():
    message = response(("CNAME", "y.example."), ("A", "1.1.1.1", "1.0.0.1"), ("TXT", "text"))
    before = message.to_text()
    POLICY.screen(message)
    assert message.to_text() == before


def test_of_a_mixed_answer_the_public_part_stays():
    message = response(("A", "10.1.1.1", "1.1.1.1"))
    POLICY.screen(message)
    assert [record.address for record in message.answer[0]] == ["1.1.1.1"]
    assert message.rcode() == dns.rcode.NOERROR


def test_an_answer_without_any_permitted_address_is_refused():
    message = response(("CNAME", "y.example."), ("A", "10.1.1.1"), ("AAAA", "::1"))
    message.additional = [dns.rrset.from_text("ns.example.", 60, "IN", "A", "1.1.1.1")]
    POLICY.screen(message)
    assert message.rcode() == dns.rcode.REFUSED
    assert message.sections[1:] == [[], [], []]


def test_hints_and_additional_records_are_screened_too():
    message = response(("HTTPS", "1 . ipv4hint=10.1.1.1"), ("HTTPS", "2 . ipv4hint=1.1.1.1"))
    message.additional = [dns.rrset.from_text("ns.example.", 60, "IN", "A", "192.0.2.3")]
    POLICY.screen(message)
    assert [record.priority for rrset in message.answer for record in rrset] == [2]
    assert message.additional == []


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("example.com.", "A", None),
        ("example.com.", "ANY", None),
        ("example.com.", "AXFR", dns.rcode.REFUSED),
        ("1.1.1.10.in-addr.arpa.", "PTR", dns.rcode.NXDOMAIN),
        ("1.1.1.1.in-addr.arpa.", "PTR", None),
        ("10.in-addr.arpa.", "NS", None),
    ],
)
def test_what_is_refused_unasked(name, kind, code):
    assert refusal(dns.message.make_query(name, kind), POLICY) == code


def test_only_plain_queries_of_one_question_are_forwarded():
    query = dns.message.make_query("example.com.", "A")
    query.set_opcode(dns.opcode.NOTIFY)
    assert refusal(query, POLICY) == dns.rcode.NOTIMP
    query = dns.message.make_query("example.com.", "A", rdclass="CH")
    assert refusal(query, POLICY) == dns.rcode.REFUSED
    query = dns.message.make_query("example.com.", "A")
    query.question = []
    assert refusal(query, POLICY) == dns.rcode.REFUSED


@given(st.binary(max_size=600))
def test_any_bytes_are_a_message_or_an_error_of_dnspython(wire):
    try:
        message = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return
    refusal(message, POLICY)
    POLICY.screen(message)


def test_resolvers_are_the_first_three_and_never_ourselves():
    text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 198.18.0.1\n" + "".join(
        f"nameserver 192.0.2.{number}\n" for number in range(5)
    )
    assert parse_resolvers(text, "198.18.0.1") == ("192.0.2.0", "192.0.2.1", "192.0.2.2")
    assert parse_resolvers("nameserver\n", "198.18.0.1") == ("127.0.0.1",)


def test_a_half_written_policy_is_an_error():
    text = '{"denied": ["10.0.0.0/8"], "allowed": []}'
    assert parse_policy(text) == Policy(denied=(IPv4Network("10.0.0.0/8"),))
    for end in range(len(text)):
        with pytest.raises(ValueError):  # noqa: PT011 - json's
            parse_policy(text[:end])


def test_a_guest_that_asks_too_fast_is_dropped_and_others_are_not():
    limits = Limits()
    assert sum(limits.admits("a", 0.0) for _ in range(1000)) == 200
    assert limits.admits("b", 0.0)
    assert not limits.admits("a", 0.001)
    assert sum(limits.admits("a", 1.0) for _ in range(1000)) == 100


def test_a_guest_has_so_many_queries_in_flight_and_all_together_so_many():
    limits = Limits()
    held = []
    for number in range(48):
        held.append(limits.in_flight("a"))
        held[-1].__enter__()
        assert limits.admits("a", number) is (number < 47)
    assert limits.admits("b", 100.0)
    for number in range(48, 256):
        held.append(limits.in_flight(f"s{number}"))
        held[-1].__enter__()
    assert not limits.admits("b", 200.0)
    for each in held:
        each.__exit__(None, None, None)
    assert limits.admits("a", 300.0)
