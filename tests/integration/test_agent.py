"""The agent, driven over its link: joining, credit, the life of streams, offences."""

import signal
import subprocess
import sys

import pytest

from magsd.guest.wire import (
    MAGIC,
    PAYLOAD_MAX,
    STREAMS_MAX,
    TRANSIENT_ID_MIN,
    WINDOW_BYTES,
    Channel,
    Frame,
    Kind,
    encode,
)
from tests.integration.agent_process import REPOSITORY, AgentProcess, exec_fields, pack

NONCE = "0123456789abcdef" * 2
JOIN = encode(Frame(Kind.JOIN, 0, payload=pack("version=1", f"nonce={NONCE}")))


@pytest.fixture
def fresh():
    with AgentProcess() as agent:
        yield agent


@pytest.fixture
def agent(fresh):
    fresh.join()
    return fresh


class TestJoin:
    def test_drops_what_comes_before_the_magic(self, fresh):
        fresh.socket.sendall(b"\0" * 40 + MAGIC[:7] + b"noise" + MAGIC[:15])
        fresh.socket.sendall(MAGIC[:3])
        fresh.join(NONCE)

    def test_arrives_byte_by_byte(self, fresh):
        for byte in b"x" + MAGIC + JOIN:
            fresh.socket.sendall(bytes([byte]))
        fresh.wait(lambda: fresh.joins)
        assert fresh.joins[0].get("nonce") == NONCE

    def test_rejoin_names_open_streams_and_their_offsets(self, agent):
        stream = agent.exec(["sh", "-c", "echo hello; echo oh >&2; read x; echo $x"], "stdin=open")
        agent.exec(["cat"], "stdin=open", stream=7)
        agent.wait(lambda: stream.out and stream.err)
        assert set(agent.join().all("stream")) == {f"{stream.id}:6:3", "7:0:0"}
        agent.write(stream, b"on\n")
        assert agent.ended(stream).out == b"hello\non\n"
        assert agent.join().all("stream") == ["7:0:0"]


class TestCredit:
    def test_a_stream_that_is_not_read_blocks_no_other(self, agent):
        stuck = agent.exec(["yes"], is_read=False)
        agent.wait(lambda: len(stuck.out) == WINDOW_BYTES)
        assert len(agent.run(["head", "-c", "20000000", "/dev/zero"]).out) == 20000000
        assert len(stuck.out) == WINDOW_BYTES
        agent.grant(stuck, Channel.OUT, WINDOW_BYTES + 10)
        agent.wait(lambda: len(stuck.out) == WINDOW_BYTES + 10)
        agent.send(Kind.RESET, stuck.id)
        agent.wait_for_processes(0)

    def test_out_and_err_have_credit_of_their_own(self, agent):
        script = "head -c 400000 /dev/zero & head -c 1000000 /dev/zero >&2; wait"
        stream = agent.exec(["sh", "-c", script], is_read=False)
        agent.wait(lambda: len(stream.out) == len(stream.err) == WINDOW_BYTES)
        agent.grant(stream, Channel.ERR, 2000000)
        agent.wait(lambda: len(stream.err) == 1000000)
        assert len(stream.out) == WINDOW_BYTES
        agent.grant(stream, Channel.OUT, 2000000)
        assert len(agent.ended(stream).out) == 400000

    def test_a_slow_reader_loses_nothing_of_a_process_that_has_ended(self, agent):
        size = WINDOW_BYTES + 40000  # the rest fits in the pipe: the process can end
        stream = agent.exec(["head", "-c", str(size), "/dev/urandom"], is_read=False)
        agent.wait_for_processes(0)
        agent.run(["sleep", "0.5"])  # longer than a drain
        assert stream.end is None
        agent.grant(stream, Channel.OUT, size)
        assert len(agent.ended(stream).out) == size

    def test_credit_that_is_smaller_than_before_means_nothing(self, agent):
        stream = agent.exec(["head", "-c", "200000", "/dev/zero"], is_read=False)
        agent.send(Kind.CREDIT, stream.id, Channel.OUT, 5)
        assert len(agent.ended(stream).out) == 200000

    def test_boundless_credit_does_not_fill_the_agent(self, agent):
        stream = agent.exec(["yes"], is_read=False)
        agent.grant(stream, Channel.OUT, 2**64 - 1)
        agent.wait(lambda: len(stream.out) > 4_000_000)
        pid = subprocess.run(
            ["pgrep", "-P", str(agent.process.pid)], capture_output=True, text=True, check=True
        ).stdout.strip()
        with open(f"/proc/{pid}/status") as status:
            resident = next(line for line in status if line.startswith("VmRSS:"))
        assert int(resident.split()[1]) < 8 * 1024


class TestStreams:
    def test_no_more_than_so_many_are_open_at_once(self, agent):
        streams = [agent.exec(["cat"], "stdin=open") for _ in range(STREAMS_MAX)]
        one_too_many = agent.ended(agent.exec(["true"]))
        assert one_too_many.end.kind == Kind.RESET
        assert one_too_many.end.fields.get("error")
        agent.write_eof(streams[7])
        agent.ended(streams[7])
        assert agent.run(["true"]).end.value == 0

    def test_reset_kills_the_group(self, agent):
        stream = agent.exec(["sh", "-c", "trap '' TERM; sleep 1000 & echo on; wait"])
        agent.wait(lambda: stream.out)
        assert agent.processes() == 2
        agent.send(Kind.RESET, stream.id)
        agent.wait_for_processes(0)
        assert stream.end is None

    def test_signal_reaches_the_group(self, agent):
        stream = agent.exec(["sh", "-c", "sleep 1000 & trap 'echo caught' USR1; echo on; wait"])
        agent.wait(lambda: stream.out)
        agent.send(Kind.SIGNAL, stream.id, value=signal.SIGUSR1)
        agent.ended(stream)
        assert stream.out == b"on\ncaught\n"

    def test_signals_that_there_are_not_are_dropped(self, agent):
        stream = agent.exec(["cat"], "stdin=open")
        for number in (0, 65, 2**63):
            agent.send(Kind.SIGNAL, stream.id, value=number)
        agent.write_eof(stream)
        assert agent.ended(stream).end.value == 0

    def test_frames_for_a_stream_that_is_over_are_dropped(self, agent):
        stream = agent.run(["true"])
        agent.send(Kind.DATA, stream.id, Channel.IN, 77, b"late")
        agent.send(Kind.EOF, stream.id, Channel.IN, 1)
        agent.send(Kind.CREDIT, stream.id, Channel.OUT, 1)
        agent.send(Kind.SIGNAL, stream.id, value=9)
        agent.send(Kind.RESET, stream.id)
        assert agent.run(["true"]).end.value == 0

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"exec",
            pack("exec"),
            pack("exec", "env=A=1"),
            pack("nonsense"),
            pack("arg=exec"),
            exec_fields(["true"])[:-1],
            pack("read"),
            pack("write", "path="),
            pack("write", "path=/run/x", "mode=9"),
            pack("write", "path=/run/x", "mode=10000"),
            pack("control"),
            b"\xff" * PAYLOAD_MAX,
        ],
    )
    def test_what_cannot_be_opened_is_reset(self, agent, payload):
        stream = agent.ended(agent.open(payload))
        assert stream.end.kind == Kind.RESET
        assert stream.end.fields.get("error")
        assert agent.run(["true"]).end.value == 0

    def test_signals_from_inside_do_not_end_it(self, agent):
        agent.run(["sh", "-c", "kill -HUP 1; kill -TERM 1; kill -INT 1; kill -KILL -1"])
        assert agent.run(["true"]).end.value == 0


class TestOffences:
    """Whoever sends these is no shim: the agent ends, and with it the VM."""

    ID = TRANSIENT_ID_MIN + 1000

    def frame(self, kind, channel=0, value=0, payload=b"", stream=ID):
        return encode(Frame(kind, stream, channel, value, payload))

    @pytest.mark.parametrize(
        ("sent", "reason"),
        [
            (b"\xff" * 24, "not a frame"),
            (b"\0" * 24, "not a frame"),
            (MAGIC + encode(Frame(Kind.OPEN, 1, payload=pack("x"))), "no JOIN"),
            (MAGIC + encode(Frame(Kind.JOIN, 0, payload=pack(f"nonce={NONCE}"))), "version"),
            (MAGIC + encode(Frame(Kind.JOIN, 0, payload=pack("version=1"))), "nonce"),
            (MAGIC + JOIN.replace(b"n=1", b"n=2"), "version"),
            (MAGIC + JOIN.replace(b"abc", b"xyz"), "nonce"),
            (MAGIC + MAGIC * 2, "not a frame"),
            (JOIN, "not for an agent"),
            (encode(Frame(Kind.REQUEST, 0)), "not for an agent"),
            (encode(Frame(Kind.REPLY, 0)), "not for an agent"),
            (encode(Frame(Kind.EXIT, ID)), "not for an agent"),
            (encode(Frame(Kind.OPEN, 0, payload=pack("x"))), "an id that no stream has"),
            (encode(Frame(Kind.OPEN, 0x8000, payload=pack("x"))), "an id that no stream has"),
            (encode(Frame(Kind.DATA, ID, Channel.OUT)), "leads out"),
            (encode(Frame(Kind.CREDIT, ID, Channel.IN)), "leads in"),
        ],
    )
    def test_of_the_link(self, agent, sent, reason):
        agent.socket.sendall(sent)
        assert reason in agent.wait_for_end()

    @pytest.mark.parametrize(
        ("frames", "reason"),
        [
            ([(Kind.OPEN, 0, 0, pack("x"))], "a stream that is open"),
            ([(Kind.DATA, 0, 1, b"x")], "another offset"),
            ([(Kind.DATA, 0, 0, b"x"), (Kind.DATA, 0, 0, b"x")], "another offset"),
            ([(Kind.EOF, 0, 1, b"")], "another offset"),
            ([(Kind.EOF, 0, 0, b""), (Kind.EOF, 0, 0, b"")], "after EOF"),
            ([(Kind.EOF, 0, 0, b""), (Kind.DATA, 0, 0, b"x")], "after EOF"),
            (
                [(Kind.DATA, 0, i * PAYLOAD_MAX, b"x" * PAYLOAD_MAX) for i in range(4)]
                + [(Kind.DATA, 0, 4 * PAYLOAD_MAX, b"x")],
                "beyond the credit",
            ),
        ],
    )
    def test_of_a_stream(self, agent, frames, reason):
        agent.exec(["sleep", "1000"], "stdin=open", stream=self.ID)
        agent.socket.sendall(b"".join(self.frame(*frame) for frame in frames))
        assert reason in agent.wait_for_end()

    def test_a_link_that_ends_ends_it(self, agent):
        agent.socket.shutdown(1)
        assert "the link has ended" in agent.wait_for_end()


@pytest.mark.parametrize(("architecture", "machine"), [("x86_64", 62), ("aarch64", 183)])
def test_guest_programs_compile_for_every_architecture(tmp_path, architecture, machine):
    build = [sys.executable, "tools/build_guest.py", "--all", "--into", tmp_path]
    subprocess.run(build, cwd=REPOSITORY, check=True)
    for name in ("mags-agent", "mags-shim", "mags-tsc"):
        program = (tmp_path / architecture / name).read_bytes()
        assert program[:4] == b"\x7fELF"
        assert int.from_bytes(program[18:20], "little") == machine
        assert b"ld-musl" not in program  # it needs no loader
    assert sorted(path.name for path in (tmp_path / architecture).iterdir()) == [
        "mags-agent",
        "mags-shim",
        "mags-tsc",
    ]
