"""The shell that the fake engine interprets scripts with."""

import asyncio
import signal
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.engine.fake.syntax import ShellSyntaxError, parse
from magsd.engine.fake.words import split, whole_number
from magsd.guest.state import EndCode
from tests.unit.engine.fake_world import Inside, settled


@pytest.fixture
async def inside():
    inside = Inside()
    yield inside
    await inside.aclose()


@pytest.mark.parametrize(
    ("script", "out"),
    [
        ("echo a b  c; echo -n d", "a b c\nd"),
        ("echo 'a  b' \"c  d\" e\\ f", "a  b c  d e f\n"),
        ("# nothing\n\n  echo a # b\necho '#c' d#e", "a\n#c d#e\n"),
        ("A='x  y'; echo $A \"$A\" '$A' ${A}z", "x y x  y $A x yz\n"),
        ("echo $NOBODY; echo \"$NOBODY\" ''x; echo a$", "\n x\na$\n"),
        ("true && echo yes || echo no; false && echo yes || echo no", "yes\nno\n"),
        ("false; echo $?; (exit 7); echo $?; nowhere 2>/dev/null; echo $?", "1\n7\n127\n"),
        ("! true || echo turned", "turned\n"),
        ("if false; then echo 1; elif true; then echo 2; else echo 3; fi", "2\n"),
        ("for x in a 'b c' $(seq 2); do echo [$x]; done", "[a]\n[b c]\n[1]\n[2]\n"),
        ('x=; while test "$x" != aaa; do x=a$x; echo $x; done', "a\naa\naaa\n"),
        ("until true; do echo no; done; while true; do break; done; echo out", "out\n"),
        ("for x in 1 2 3; do test $x = 2 && continue; echo $x; done", "1\n3\n"),
        ("x=1; (x=2; cd /tmp; echo $x $(pwd)); echo $x $(pwd)", "2 /tmp\n1 /root\n"),
        ("{ echo a; echo b >&2; } 2>&1", "a\nb\n"),
        ("echo gone > /dev/null; echo seen > /dev/stdout", "seen\n"),
        ("echo 1 > f; echo 2 >> /root/f; cat f; cat < f; cat < f > g; cat /root/g", "1\n2\n" * 3),
        ('x=$(echo a; echo b; echo); echo "$x"; echo $x', "a\nb\na b\n"),
        ("X=1 sh -c 'echo $X-$Y $0 $1 $# $@' name one two", "1- name one 2 one two\n"),
        ("Y=2; export Y Z=3; sh -c 'echo $Y$Z'; X=4; sh -c 'echo [$X]'", "23\n[]\n"),
        ("hostname; id -u; nproc; pwd", "pretender\n0\n3\n/root\n"),
        (
            "printf '%s=%03d|%-4s|%5.1s|%x%%\\n' a 7 b cde 255 f 8",
            "a=007|b   |    c|ff%\nf=008|    |     |0%\n",
        ),
        (r"printf 'a\tb\101\n'; printf '%b' 'c\n'; printf plain", "a\tbA\nc\nplain"),
        ("seq 3; seq 2 4; seq 9 -3 1; seq 5 1", "1\n2\n3\n2\n3\n4\n9\n6\n3\n"),
        ("[ 2 -lt 10 ] && [ ! -f /x ] && test -d /tmp && [ -n '' ] || echo no", "no\n"),
        ("echo a >/x; test -s /x && test -e /x && ! test -d /x && echo file", "file\n"),
        ("exit 3; echo not reached", ""),
        ("trap 'echo bye $?' EXIT; exit 4", "bye 4\n"),
        ("kill -0 $$ && echo alive; kill -CHLD $$; echo still", "alive\nstill\n"),
        ("flood 10; echo", "0000000000\n"),
        ("/bin/echo a; /usr/bin/printf b", "a\nb"),
    ],
)
async def test_scripts_do_what_a_shell_does(inside, script, out):
    assert (await inside.run(script))[1:] == (out, "")


@pytest.mark.parametrize(
    ("script", "code", "err"),
    [
        ("python3 x", 127, "python3: not found (the fake engine runs no programs)"),
        ("/root/own", 127, "/root/own: not found"),
        ("echo a | cat", 2, "1: |: the fake engine's shell knows no pipes"),
        ("true\nsleep 1 &", 2, "2: &: the fake engine's shell knows no commands in the background"),
        ("echo `x`", 2, "$(…) only"),
        ("echo $((1+1))", 2, "does not calculate"),
        ("echo ${X:-1}", 2, "${NAME} only"),
        ("echo 'a", 2, "' is not closed"),
        ("while true; echo a", 2, "do is missing before the end"),
        ("done", 2, "unexpected 'done'"),
        ("cat /nowhere", 1, "cat: /nowhere: No such file or directory"),
        ("echo a > /tmp", 1, "cannot open /tmp: Is a directory"),
        ("cd /nowhere", 1, "cd: /nowhere: No such file or directory"),
        ("sleep soon", 2, "usage: sleep SECONDS"),
        ("fake nonsense", 2, "usage: fake out_of_memory"),
        ("kill -9 4711", 1, "No such process"),
        ("echo a >&7", 1, "7: no such descriptor"),
        ("x=" + "(" * 60, 2, "unexpected"),
        ("(" * 60 + "true" + ")" * 60, 2, "nested too deeply"),
        ("x=a; while true; do x=$x$x; done", 2, "a word of more than"),
        ("echo $(flood 100000000)", 0, "printed more than"),
        ("sh -c 'sh -c \"sh /nowhere\"'", 1, "No such file or directory"),
        ("echo 'sh /s' > /s; sh /s", 2, "too many shells inside one another"),
    ],
)
async def test_what_is_not_understood_is_told(inside, script, code, err):
    found, _, told = await inside.run(script)
    assert found == code
    assert err in told


async def test_files_have_an_end(inside):
    found, _, told = await inside.run("while true; do flood 10000000 >> /big || exit 9; done")
    assert (found, told) == (9, "flood: No space left on device\n")
    assert (await inside.run("echo > /big; echo fits > /small; cat /small"))[1] == "fits\n"


# --- time and signals ------------------------------------------------------------------


async def test_a_sleep_takes_its_time(inside):
    _, printed = inside.begin("sleep 5; echo a; sleep 0.5m; echo b")
    await inside.world.pass_time(4.9)
    assert printed.out == ""
    await inside.world.pass_time(0.2)
    assert printed.out == "a\n"
    await inside.world.pass_time(30)
    assert printed.out == "a\nb\n"
    assert inside.statuses == [0]


async def test_a_freeze_stops_sleeps_and_output(inside):
    _, printed = inside.begin("sleep 5; echo a; while true; do sleep 1; echo b; done")
    await inside.world.pass_time(3)
    inside.machine.freeze()
    await inside.world.pass_time(1000)
    assert printed.out == ""
    inside.machine.thaw()
    await inside.world.pass_time(1.9)
    assert printed.out == ""
    await inside.world.pass_time(0.2)
    assert printed.out == "a\n"
    inside.machine.freeze()
    inside.machine.thaw()
    await inside.world.pass_time(3)
    assert printed.out == "a\nb\nb\nb\n"


async def test_a_freeze_stops_a_script_that_never_waits(inside):
    _, printed = inside.begin("while true; do echo a; done")
    await settled()
    inside.machine.freeze()
    await settled()
    before = printed.out
    assert before
    await settled()
    assert printed.out == before


async def test_signals(inside):
    program, printed = inside.begin("sleep 100")
    await settled()
    program.signal(signal.SIGCHLD)
    program.signal(signal.SIGTERM)
    await settled()
    program, printed = inside.begin(
        "trap 'echo asked; exit 5' TERM; trap '' INT; echo up; while true; do sleep 100; done"
    )
    await settled()
    program.signal(signal.SIGINT)
    await settled()
    assert len(inside.statuses) == 1
    program.signal(signal.SIGTERM)
    await settled()
    assert inside.statuses == [signal.SIGTERM, 5 << 8]
    assert printed.out == "up\nasked\n"


async def test_a_signal_to_what_is_frozen_comes_with_the_thaw(inside):
    program, _ = inside.begin("sleep 100")
    await settled()
    inside.machine.freeze()
    program.signal(signal.SIGKILL)
    await settled()
    assert inside.statuses == []
    inside.machine.thaw()
    await settled()
    assert inside.statuses == [signal.SIGKILL]


async def test_a_script_may_kill_another(inside):
    program, _ = inside.begin("sleep 100")
    await settled()
    assert (await inside.run(f"kill -KILL {program.pid}; echo done"))[1] == "done\n"
    assert signal.SIGKILL in inside.statuses


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("out_of_memory", EndCode.OUT_OF_MEMORY),
        ("too_many_processes", EndCode.TOO_MANY_PROCESSES),
        ("agent_died", EndCode.AGENT_DIED),
        ("engine_died", EndCode.ENGINE_DIED),
        ("shim_died", EndCode.NONE),
    ],
)
async def test_faults_from_inside(inside, fault, code):
    inside.begin(f"fake {fault}")
    await settled()
    assert [end[0] for end in inside.ends] == [code]


async def test_a_vm_that_hangs_takes_no_signal(inside):
    program, printed = inside.begin("echo a; fake hang; echo b")
    await settled()
    program.signal(signal.SIGKILL)
    inside.machine.thaw()
    await inside.world.pass_time(1000)
    assert (printed.out, inside.statuses, inside.ends) == ("a\n", [], [])


async def test_two_scripts_that_never_wait_take_turns(inside):
    _, first = inside.begin("while true; do echo a; done")
    _, second = inside.begin("while true; do echo b; done")
    async with asyncio.timeout(10):
        while not (len(first.out) > 1000 and len(second.out) > 1000):
            await asyncio.sleep(0)


# --- the grammar, with anything -----------------------------------------------------------


@given(st.text(alphabet="ab \n;&|(){}<>'\"\\$`#=!2", max_size=60))
def test_anything_is_understood_or_refused(script):
    with suppress(ShellSyntaxError):
        parse(script)


@given(st.lists(st.sampled_from(
    ["if", "then", "else", "fi", "while", "do", "done", "for", "in", "x", "{", "}", "!", ";", "\n",
     "(", ")", "$(", "&&", "> f", "a=1", "'q'"]), max_size=25))  # fmt: skip
def test_any_words_are_understood_or_refused(words):
    with suppress(ShellSyntaxError):
        parse(" ".join(words))


@given(st.lists(st.text(max_size=8), max_size=8))
def test_quoted_text_stays_what_it_is(texts):
    assert split([(text, False) for text in texts]) == (["".join(texts)] if texts else [])


@given(st.text(max_size=30))
def test_an_unquoted_text_is_split_at_blanks(text):
    assert split([(text, True)]) == text.split()


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("-7", -7), ("+7", 7), ("", None), ("-", None), ("7a", None), ("٣", None),
     ("--7", None), ("9" * 19, None)],
)  # fmt: skip
def test_numbers(text, number):
    assert whole_number(text) == number
