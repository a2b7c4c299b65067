"""The agent, driven over its link: programs, files and control."""

import errno
import os
import signal

import pytest

from magsd.guest.wire import PAYLOAD_MAX, WINDOW_BYTES, Channel, Kind
from tests.integration.agent_process import AgentProcess, pack


@pytest.fixture
def agent():
    with AgentProcess() as agent:
        agent.join()
        yield agent


def write_file(agent, path, content=b"", *more):
    stream = agent.open(pack("write", b"path=" + os.fsencode(path), *more))
    agent.write(stream, content)
    agent.write_eof(stream)
    return agent.ended(stream).end


def read_file(agent, path):
    return agent.ended(agent.open(pack("read", b"path=" + os.fsencode(path))))


class TestExec:
    @pytest.mark.parametrize(
        ("script", "status"),
        [
            ("exit 0", 0),
            ("exit 3", 3 << 8),
            ("exit 255", 255 << 8),
            ("kill -TERM $$", signal.SIGTERM),
            ("kill -KILL $$", signal.SIGKILL),
        ],
    )
    def test_exit_carries_the_wait_status(self, agent, script, status):
        assert agent.run(["sh", "-c", script]).end.value == status

    def test_out_and_err_are_apart_and_end_before_the_exit(self, agent):
        stream = agent.run(["sh", "-c", "echo out; echo err >&2"])
        assert (stream.out, stream.err) == (b"out\n", b"err\n")
        assert stream.closed == {Channel.OUT, Channel.ERR}

    @pytest.mark.parametrize(
        ("program", "status", "why"),
        [
            ("no-such-program", 127, "No such file"),
            ("/no/such/program", 127, "No such file"),
            ("", 127, "No such file"),
            ("/etc/passwd", 126, "Permission denied"),
            ("/etc", 126, "Permission denied"),
            ("x" * 5000, 127, ""),
        ],
    )
    def test_a_program_that_cannot_be_started(self, agent, program, status, why):
        stream = agent.run([program])
        assert stream.end.value == status << 8
        assert why in stream.err.decode()
        assert stream.err.endswith(b"\n")

    def test_a_script_without_a_first_line_is_not_executable(self, agent):
        assert write_file(agent, "/run/plain", b"echo hi\n", "mode=755").value == 0
        assert agent.run(["/run/plain"]).end.value == 126 << 8

    def test_the_environment_is_exactly_what_was_asked_for(self, agent):
        payload = pack("exec", "arg=env", "env=PATH=/usr/bin:/bin", "env=A=1=2", "env=B=")
        assert agent.ended(agent.open(payload)).out == b"PATH=/usr/bin:/bin\nA=1=2\nB=\n"
        payload = pack("exec", "arg=/usr/bin/env")
        assert agent.ended(agent.open(payload)).out == b""

    def test_the_program_is_found_in_its_own_path(self, agent):
        write_file(agent, "/run/here/tool", b"#!/bin/sh\necho found $0\n", "mode=755")
        write_file(agent, "/run/plain/tool", b"")
        payload = pack("exec", "arg=tool", "env=PATH=/none:/run/plain:/run/here")
        assert agent.ended(agent.open(payload)).out == b"found /run/here/tool\n"
        payload = pack("exec", "arg=./tool", "cwd=/run/here")
        assert agent.ended(agent.open(payload)).out == b"found ./tool\n"
        payload = pack("exec", "arg=tool", "env=PATH=/none:/run/plain")
        assert agent.ended(agent.open(payload)).end.value == 126 << 8

    @pytest.mark.parametrize(
        ("cwd", "result"),
        [
            ((), "/root"),
            (("cwd=/usr",), "/usr"),
            (("cwd=/none",), "/"),
            (("cwd=/etc/passwd",), "/"),
        ],
    )
    def test_working_directory(self, agent, cwd, result):
        assert agent.run(["pwd"], *cwd).out.decode() == f"{result}\n"

    def test_has_three_descriptors_and_a_session_and_no_signal_set(self, agent):
        script = "echo /proc/self/fd/*; cut -d' ' -f1,5,6 /proc/$$/stat; grep -E 'Sig(Ign|Blk)' "
        lines = agent.run(["sh", "-c", script + "/proc/self/status"]).out.decode().splitlines()
        descriptors = [int(path.rpartition("/")[2]) for path in lines[0].split()]
        assert descriptors == [0, 1, 2, 3]  # the last is what the shell looks with
        assert len(set(lines[1].split())) == 1
        assert [int(line.split()[1], 16) for line in lines[2:]] == [0, 0]

    def test_stdin_is_empty_unless_asked_for(self, agent):
        stream = agent.exec(["sh", "-c", "wc -c; readlink /proc/self/fd/0"])
        agent.write(stream, b"nobody reads this" * 40000)
        assert agent.ended(stream).out == b"0\n/dev/null\n"

    def test_stdin_goes_through_unchanged(self, agent):
        data = bytes(range(256)) * 12000
        stream = agent.exec(["cat"], "stdin=open")
        agent.write(stream, data)
        agent.write_eof(stream)
        assert agent.ended(stream).out == data

    def test_stdin_that_ends_empty(self, agent):
        stream = agent.exec(["wc", "-c"], "stdin=open")
        agent.write_eof(stream)
        assert agent.ended(stream).out == b"0\n"

    def test_stdin_that_nobody_reads_is_dropped_when_it_is_closed(self, agent):
        stream = agent.exec(["sh", "-c", "exec <&-; exec sleep 1000"], "stdin=open")
        agent.write(stream, b"x" * 5 * WINDOW_BYTES)
        agent.send(Kind.SIGNAL, stream.id, value=signal.SIGTERM)
        assert agent.ended(stream).end.value == signal.SIGTERM

    def test_stdin_that_is_not_read_earns_no_credit(self, agent):
        stream = agent.exec(["sleep", "1000"], "stdin=open")
        agent.write(stream, b"x" * WINDOW_BYTES)
        agent.run(["true"])
        assert stream.limit == WINDOW_BYTES
        agent.send(Kind.RESET, stream.id)

    def test_arguments_and_output_are_bytes(self, agent):
        stream = agent.run(["printf", b"%s\\000\\377", b"\xfe\xff\n="])
        assert stream.out == b"\xfe\xff\n=\0\xff"

    def test_a_closed_stdout_ends_its_channel_only(self, agent):
        stream = agent.exec(["sh", "-c", "exec >&-; read x; echo $x >&2"], "stdin=open")
        agent.wait(lambda: Channel.OUT in stream.closed)
        agent.write(stream, b"still here\n")
        assert agent.ended(stream).err == b"still here\n"

    def test_ends_with_both_outputs_closed_long_before(self, agent):
        stream = agent.exec(["sh", "-c", "exec >&- 2>&-; read x; exit 5"], "stdin=open")
        agent.wait(lambda: len(stream.closed) == 2)
        agent.write(stream, b"\n")
        assert agent.ended(stream).end.value == 5 << 8

    def test_a_daemon_does_not_hold_the_stream(self, agent):
        stream = agent.run(["sh", "-c", "nohup sleep 1000 & echo done"])
        assert stream.out == b"done\n"
        assert stream.end.value == 0
        assert agent.processes() == 1

    def test_a_daemon_that_goes_on_printing_does_not_hold_the_stream(self, agent):
        stream = agent.run(["sh", "-c", "yes & exit 3"])
        assert stream.end.value == 3 << 8
        assert stream.out.startswith(b"y\n")
        # What it prints is read and dropped: it would end without a reader.
        assert agent.run(["sh", "-c", "sleep 0.5"]).end.value == 0
        assert agent.processes() == 1

    def test_what_a_filter_of_its_own_still_prints_is_kept(self, agent):
        script = "(read x; echo got $x; exec >&-) <<. & echo first\nx\n."
        # The filter has a fifth of a second; on a busy machine that can be too short.
        assert any(
            sorted(agent.run(["sh", "-c", script]).out.splitlines()) == [b"first", b"got x"]
            for _ in range(20)
        )


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, PAYLOAD_MAX, 3_000_001])
    def test_written_and_read_again(self, agent, size):
        content = os.urandom(size)
        assert write_file(agent, "/run/a/b/c/file", content, "mode=4750").value == 0
        stream = read_file(agent, "/run/a/b/c/file")
        assert (stream.out, stream.end.value) == (content, 0)
        assert Channel.OUT in stream.closed
        shown = agent.run(["stat", "-c", "%a", "/run/a/b/c/file", "/run/a"]).out
        assert shown == b"4750\n755\n"
        assert agent.run(["ls", "-A", "/run/a/b/c"]).out == b"file\n"

    def test_names_are_bytes(self, agent):
        assert write_file(agent, b"/run/\xff\n=x", b"content").value == 0
        assert read_file(agent, b"/run/\xff\n=x").out == b"content"

    def test_the_old_file_stays_until_the_new_one_is_whole(self, agent):
        write_file(agent, "/run/a/file", b"old")
        stream = agent.open(pack("write", "path=/run/a/file"))
        agent.write(stream, b"new")
        assert read_file(agent, "/run/a/file").out == b"old"
        agent.send(Kind.RESET, stream.id)
        assert read_file(agent, "/run/a/file").out == b"old"
        assert agent.run(["ls", "-A", "/run/a"]).out == b"file\n"

    def test_default_mode(self, agent):
        write_file(agent, "/run/file")
        assert agent.run(["stat", "-c", "%a", "/run/file"]).out == b"644\n"

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("/none", "No such file or directory"),
            ("/etc", "Is a directory"),
            ("/dev/null", "Invalid argument"),
            ("/etc/passwd/x", "Not a directory"),
            ("/" + "x" * 5000, "Filename too long"),
        ],
    )
    def test_what_cannot_be_read(self, agent, path, error):
        end = read_file(agent, path).end
        assert end.kind == Kind.EXIT
        assert end.value != 0
        assert end.fields.get("error") == error

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("/etc", "Is a directory"),
            ("/etc/passwd/x", "Not a directory"),
            ("/proc/none", "No such file or directory"),
            ("/" + "x/" * 3000, "Filename too long"),
        ],
    )
    def test_what_cannot_be_written(self, agent, path, error):
        end = write_file(agent, path, b"x" * 10)
        assert end.value != 0
        assert end.fields.get("error") == error

    def test_a_full_disk(self, agent):
        agent.run(["sh", "-c", "mkdir /run/small && mount -t tmpfs -o size=64k none /run/small"])
        end = write_file(agent, "/run/small/file", b"x" * 2_000_000)
        assert end.fields.get("error") == "No space left on device"
        assert agent.run(["ls", "-A", "/run/small"]).out == b""


class TestControl:
    def test_stats_count_processes_and_what_has_ended(self, agent):
        assert agent.processes() == 0
        before = int(agent.control("stats").fields.get("cpu_ns"))
        agent.run(["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"])
        middle = int(agent.control("stats").fields.get("cpu_ns"))
        assert middle - before > 20_000_000
        running = agent.exec(["sh", "-c", "while :; do :; done"])
        while int(agent.control("stats").fields.get("cpu_ns")) - middle < 50_000_000:
            pass
        agent.send(Kind.RESET, running.id)
        agent.wait_for_processes(0)
        assert int(agent.control("stats").fields.get("cpu_ns")) - middle >= 50_000_000

    def test_identity(self, agent):
        for name in ("one", "two.example-3"):
            end = agent.control(
                "identity",
                f"hostname={name}",
                f"machine_id={'ab' * 16}",
                f"clock_ns={10**18}",
                f"entropy={'00ff' * 16}",
            )
            assert end.value == 0
            assert end.fields.all("kept") == ["clock"]
            assert end.fields.all("absent") == []
            assert agent.run(["uname", "-n"]).out.decode() == f"{name}\n"
            assert read_file(agent, "/etc/hostname").out.decode() == f"{name}\n"
            assert read_file(agent, "/etc/machine-id").out == b"ab" * 16 + b"\n"
            assert f"127.0.1.1\t{name}\n" in read_file(agent, "/etc/hosts").out.decode()
        assert agent.run(["sh", "-c", "wc -c < /run/upper/hostname"]).out == b"0\n"

    def test_identity_names_files_that_the_root_does_not_have(self, agent):
        agent.run(["rm", "/etc/hostname"])
        end = agent.control("identity", "hostname=one")
        assert (end.value, end.fields.all("absent")) == (0, ["/etc/hostname"])

    @pytest.mark.parametrize(
        "field",
        [
            "hostname=",
            "hostname=a b",
            "hostname=" + "x" * 65,
            "machine_id=12",
            "entropy=0",
            "entropy=xx",
            "clock_ns=",
            "clock_ns=-1",
            "clock_ns=1x",
        ],
    )
    def test_identity_that_is_none(self, agent, field):
        end = agent.control("identity", field)
        assert end.value != 0
        assert end.fields.get("error") == "Invalid argument"

    def test_bind_lays_files_over_the_roots(self, agent):
        for content in (b"first", b"second"):
            write_file(agent, "/run/mags/root/etc/hosts", content)
            write_file(agent, "/run/mags/root/etc/none", content)
            end = agent.control("bind", "path=/etc/hosts", "path=etc/none")
            assert (end.value, end.fields.all("absent")) == (0, ["/etc/none"])
            assert read_file(agent, "/etc/hosts").out == content
        assert agent.run(["sh", "-c", "grep -c ' /etc/hosts ' /proc/mounts"]).out == b"1\n"
        assert agent.control("bind", "path=/etc/fstab").value != 0  # nothing was written for it

    def test_quiesce_holds_everything_back_until_the_next_join(self, agent):
        stream = agent.exec(["sh", "-c", "echo one; read x; echo two; exit 4"], "stdin=open")
        agent.wait(lambda: stream.out)
        assert agent.control("quiesce").value == 0
        agent.write(stream, b"\n")
        agent.wait_for_processes(0)
        assert stream.out == b"one\n"
        assert stream.end is None
        assert agent.join().all("stream") == [f"{stream.id}:4:0"]
        assert agent.ended(stream).out == b"one\ntwo\n"
        assert stream.end.value == 4 << 8

    def test_what_there_is_not(self, agent):
        assert agent.control("dance").fields.get("error") == "Function not implemented"

    def test_poweroff(self, agent):
        agent.exec(["sh", "-c", "trap '' TERM HUP; sleep 1000"])
        assert agent.control("poweroff").value == 0
        assert "powered off" in agent.wait_for_end()


class TestUploads:
    def test_they_are_shown_by_links(self, agent):
        for _ in range(2):
            ended = agent.ended(agent.open(pack("control", "uploads", "name=a b", "name=ä"))).end
            assert ended.value == 0
            # This root has no such folder.
            assert list(ended.fields.all("absent")) == ["/uploads"]
        script = 'cd /run/mags/uploads; for name in *; do readlink "$name"; done'
        assert agent.run(["sh", "-c", script]).out.decode() == "/root/a b\n/root/ä\n"

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "x" * 5000])
    def test_what_is_no_name_is_refused(self, agent, name):
        ended = agent.ended(agent.open(pack("control", "uploads", f"name={name}"))).end
        assert ended.value in (errno.EINVAL, errno.ENAMETOOLONG)
