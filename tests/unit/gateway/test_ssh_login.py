"""What a login is, decided from what clients and guests say."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.gateway import ssh_login as login
from magsd.model.errors import TooLargeError

CONNECTION = "192.0.2.7 50000 192.0.2.1 7022"


@pytest.mark.parametrize(
    ("passwd", "shell"),
    [
        (b"root:x:0:0:root:/root:/bin/bash\nbin:x:1:1::/:/bin/false\n", "/bin/bash"),
        (b"bin:x:1:1::/:/bin/false\nroot:x:0:0:root:/root:/bin/ash", "/bin/ash"),
        (b"", "/bin/sh"),
        (b"bin:x:1:1::/:/bin/false\n", "/bin/sh"),
        (b"root:x:0:0:root:/root:\n", "/bin/sh"),
        (b"root:x:0:0:root:/root:bash\n", "/bin/sh"),
        (b"root:x:0:0:root:/root:/bin/\0sh\n", "/bin/sh"),
        (b"root:x:0:0:root:/root:/" + b"x" * 300 + b"\n", "/bin/sh"),
        (b"root:x:0\nroot:x:0:0:root:/root:/bin/zsh\n", "/bin/zsh"),
        (b"root:x:0:0:root:/root:/bin/\xff\n", "/bin/\udcff"),
    ],
)
def test_the_shell_is_roots(passwd, shell):
    assert login.shell_of(passwd) == shell


@given(st.binary(max_size=300))
def test_whatever_passwd_holds_there_is_a_shell(passwd):
    shell = login.shell_of(b"root:x:0:0:root:/root:" + passwd)
    assert shell.startswith("/")
    assert "\0" not in shell
    assert "\n" not in shell


def test_a_command_is_the_shells_and_no_command_a_login():
    assert login.arguments("/bin/bash", "echo 'a b'") == (("/bin/bash", "-c", "echo 'a b'"), "")
    assert login.arguments("/bin/bash", "") == (("/bin/bash", "-c", ""), "")
    assert login.arguments("/bin/bash", None) == (("/bin/bash",), "-bash")


def test_what_does_not_fit_is_told_before_it_is_sent():
    login.check_size(["sh", "-c", "x" * 50_000], {"A": "b"})
    for argv, names in ([["sh", "-c", "ü" * 30_000], {}], [["sh"], {"A": "x" * 60_000}]):
        with pytest.raises(TooLargeError, match="56 KiB"):
            login.check_size(argv, names)
    with pytest.raises(TooLargeError):
        login.check_size(["sh"], dict.fromkeys(map(str, range(8000)), ""))


def variables(of_job=(), of_client=(), terminal=None):
    return login.environment(
        dict(of_job), dict(of_client), shell="/bin/bash", terminal=terminal, connection=CONNECTION
    )


def test_a_login_has_what_programs_count_on():
    assert variables() == {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL": "/bin/bash",
        "SSH_CONNECTION": CONNECTION,
        "SSH_CLIENT": "192.0.2.7 50000 7022",
    }
    assert variables(terminal="xterm")["TERM"] == "xterm"


def test_the_jobs_variables_count_more_than_a_logins_but_not_than_facts():
    asked = {"PATH": "/opt", "HOME": "/srv", "LANG": "C.UTF-8", "SHELL": "/bin/no", "TERM": "job"}
    made = variables(asked, {"LANG": "de_DE.UTF-8"}, terminal="xterm")
    assert (made["PATH"], made["HOME"], made["LANG"]) == ("/opt", "/srv", "de_DE.UTF-8")
    assert (made["SHELL"], made["TERM"]) == ("/bin/bash", "xterm")
    assert variables(asked)["TERM"] == "job"


@pytest.mark.parametrize(
    ("name", "value", "held", "may"),
    [
        (b"LANG", b"de_DE.UTF-8", 0, True),
        (b"LC_ALL", b"C", 31, True),
        (b"LC_ALL", b"C", 32, False),
        (b"LC_X", b"\xff", 0, True),
        (b"LD_PRELOAD", b"/tmp/x.so", 0, False),
        (b"LANGUAGE", b"de", 0, False),
        (b"PATH", b"/tmp", 0, False),
        (b"", b"", 0, False),
        (b"LC_A=B", b"x", 0, False),
        (b"LC_A", b"a\0b", 0, False),
        (b"LC_\0", b"x", 0, False),
        (b"LC_A", b"x" * 1020, 0, True),
        (b"LC_A", b"x" * 1021, 0, False),
    ],
)
def test_a_client_may_set_its_language_and_not_much_of_it(name, value, held, may):
    assert login.may_set(name, value, held) is may


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ("xterm-256color", "xterm-256color"),
        ("", "dumb"),
        ("x" * 65, None),
        ("a b", None),
        ("a\nb", None),
        ("a\0", None),
    ],
)
def test_the_terminals_name(asked, known):
    assert login.terminal_type(asked) == known


def test_a_terminals_modes_are_as_they_came():
    assert login.terminal_modes({53: 0, 129: 38400}) == bytes(
        [53, 0, 0, 0, 0, 129, 0, 0, 150, 0, 0]
    )
    assert login.terminal_modes({}) == b"\0"


def test_a_terminals_size_is_one_that_a_kernel_takes():
    assert login.terminal_size(80, 24) == (80, 24)
    assert login.terminal_size(0, 4_294_967_295) == (0, 65535)


def test_signals_by_name():
    assert login.signal_number("TERM") == signal.SIGTERM
    assert login.signal_number("USR1") == signal.SIGUSR1
    assert login.signal_number("WINCH") == signal.SIGWINCH
    for name in ("", "SIGTERM", "term", "RTMIN", "9", "NONE"):
        assert login.signal_number(name) is None


@pytest.mark.parametrize(
    ("wait_status", "ended"),
    [
        (0, login.Ended(0)),
        (3 << 8, login.Ended(3)),
        (255 << 8, login.Ended(255)),
        (9, login.Ended(137, "KILL")),
        (15, login.Ended(143, "TERM")),
        (11 | 0x80, login.Ended(139, "SEGV", True)),
        (signal.SIGXCPU, login.Ended(152, "XCPU@openssh.com")),
        (45, login.Ended(173, "45@openssh.com")),
    ],
)
def test_how_a_program_ended(wait_status, ended):
    assert login.ended(wait_status) == ended
