"""An engine that is confined: what it inherits, sees and may do, and that it ends with its shim."""

import asyncio
import os
import platform
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from magsd.guest.shim import ShimError
from tests.integration.shim_process import (
    ShimProcess,
    memfd,
    open_tree,
    processes_of,
    until,
)

ENGINE_UID, ENGINE_GID = 2_000_456, 2_000_457
USER = ("user", f"{ENGINE_UID}:{ENGINE_GID}")
FILE_SIZE = 64 << 10
PASSED_MAX = 64
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
PRCTL = {"x86_64": 157, "aarch64": 167}[platform.machine()]
PR_GET_PDEATHSIG = 2


class Box:
    """The tree that an engine is to see, and the file in which it writes what it saw."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "vm/root"
        self._report = directory / "report"

    def report(self) -> str:
        return self._report.read_text()

    def holds_report(self, pid: int) -> bool:
        """Whether a process has the report open."""
        links = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
        return str(self._report) in links

    async def open(self, script: str, *steps, descriptors=(), then="exit 7"):
        """Open a shim whose engine writes what the script prints, and goes on by `then`."""
        (self.directory / "vm").mkdir()
        report = os.open(self._report, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        usr = open_tree("/usr")
        tree = [
            ("tmpfs", f"{self.directory}/vm"),
            *(("mkdir", f"{self.root}{name}") for name in ("", "/usr", "/proc")),
            *(("symlink", f"usr/{name}:{self.root}/{name}") for name in ("bin", "lib", "lib64")),
            ("layer", f"{usr}:{self.root}/usr"),
            ("proc", f"{self.root}/proc"),
            ("pass", str(report)),
        ]
        whole = f'report=$0\n({script}) >&"$report"\n{then}'
        return await ShimProcess.open(
            self.directory,
            ["/bin/bash", "-c", whole, str(report)],
            steps=[*tree, *steps],
            descriptors=[usr, report, *descriptors],
            start=False,
        )

    async def confined(self, script: str, *steps, **options) -> str:
        """Run the script as a user in the tree, and return what it printed."""
        steps = (("root", str(self.root)), USER, *steps)
        return await self.ran(script, *steps, **options)

    async def ran(self, script: str, *steps, **options) -> str:
        """Run the script to its end, and return what it printed."""
        async with await self.open(script, *steps, **options) as shim:
            with pytest.raises(ShimError, match="exited with code 7"):
                await shim.control.request("start")
        return self.report()

    @asynccontextmanager
    async def living(self, script: str, *steps):
        """Have an engine inside the block that lives until its shim ends."""
        async with await self.open(script, *steps, then="exec sleep 1000") as shim:
            starting = asyncio.ensure_future(shim.control.request("start"))
            try:
                await until(self.report)
                yield shim
                await shim.aclose()
            finally:
                with suppress(ShimError):
                    await starting


@pytest.fixture
def box(tmp_path) -> Box:
    return Box(tmp_path)


async def test_the_engine_inherits_what_is_passed_and_nothing_else(box):
    given = memfd(b"for the engine")
    script = (
        "for fd in /proc/$$/fd/*; do echo ${fd##*/} $(readlink $fd); done;"
        f" cat <&{given}; echo; echo $report"
    )
    os.lseek(given, 0, os.SEEK_SET)
    text = await box.confined(script, ("pass", str(given)), descriptors=[given])
    *lines, content, report = text.splitlines()
    assert content == "for the engine"
    links = dict(line.split(" ", 1) for line in lines)
    assert links.keys() == {"0", "1", "2", report, str(given)}
    assert links["0"] == links["1"]
    assert links["0"].startswith("socket:")
    assert links["2"].startswith("pipe:")


async def test_the_shim_keeps_no_descriptor_that_it_passed_on(box):
    async with box.living("echo here", ("root", str(box.root))) as shim:
        assert box.holds_report(shim.engine())
        assert not box.holds_report(shim.pid)


async def test_the_engine_sees_its_root_and_the_processes_of_its_vm(box):
    script = "pwd; echo /* | tr ' ' '\\n'; readlink /lib; echo /proc/[0-9]*; cat /proc/mounts"
    lines = (await box.confined(script)).splitlines()
    assert lines[:7] == ["/", "/bin", "/lib", "/lib64", "/proc", "/usr", "usr/lib"]
    assert {"/proc/1", "/proc/2"} <= set(lines[7].split())
    assert len(lines[7].split()) < 8
    mounts = {line.split()[1]: line.split() for line in lines[8:]}
    assert mounts["/proc"][2] == "proc"
    assert {"nosuid", "nodev", "noexec"} <= set(mounts["/proc"][3].split(","))


async def test_the_engine_is_a_user_without_rights(box):
    script = "cat /proc/self/status; echo Core: $(ulimit -Sc) $(ulimit -Hc)"
    lines = (line.partition(":") for line in (await box.confined(script)).splitlines())
    status = {key: value.split() for key, _, value in lines}
    assert status["Uid"] == [str(ENGINE_UID)] * 4
    assert status["Gid"] == [str(ENGINE_GID)] * 4
    assert status["Groups"] == []
    assert {int(status[name][0], 16) for name in CAPABILITY_SETS} == {0}
    assert status["NoNewPrivs"] == ["1"]
    assert status["Core"] == ["0", "0"]
    assert int(status["SigIgn"][0], 16) == 0


async def test_an_engine_without_a_user_stays_root(box):
    text = await box.ran("grep -E '^(Uid|CapEff|NoNewPrivs)' /proc/self/status")
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    own = Path("/proc/self/status").read_text()
    assert status["Uid"] == "0\t0\t0\t0"
    assert f"CapEff:\t{status['CapEff']}\n" in own
    assert f"NoNewPrivs:\t{status['NoNewPrivs']}\n" in own


async def test_a_file_cannot_grow_beyond_the_limit(box):
    given = os.memfd_create("file")
    kept = os.dup(given)
    script = (
        f"head -c {2 * FILE_SIZE} /usr/bin/bash >&{given} 2>&$report; echo $?;"
        " grep SigIgn /proc/self/status; echo $(ulimit -Sf) $(ulimit -Hf)"
    )
    try:
        text = await box.confined(
            script, ("pass", str(given)), ("file_size", str(FILE_SIZE)), descriptors=[given]
        )
        assert os.fstat(kept).st_size == FILE_SIZE
    finally:
        os.close(kept)
    error, code, ignored, limits = text.splitlines()
    assert error.endswith("File too large")
    assert code == "1"  # and not a signal's
    assert int(ignored.split()[1], 16) == 1 << (signal.SIGXFSZ - 1)
    assert limits == f"{FILE_SIZE >> 10} {FILE_SIZE >> 10}"


async def test_the_engine_hangs_on_its_shim_although_it_is_another_user(box):
    ask = f'my $b = pack("i", 0); syscall({PRCTL}, {PR_GET_PDEATHSIG}, $b); print unpack("i", $b)'
    # The process itself asks: a child of it would not have the signal.
    then = f'exec perl -e \'open(my $o, ">&=", $ARGV[0]); select($o); {ask}; exit 7\' "$report"'
    assert await box.ran("true", USER, then=then) == str(int(signal.SIGKILL))


async def test_the_engine_ends_with_its_shim(box):
    async with box.living("echo here", ("root", str(box.root)), USER) as shim:
        engine = shim.engine()
        assert f"Uid:\t{ENGINE_UID}\t" in Path(f"/proc/{engine}/status").read_text()
        namespace = os.readlink(f"/proc/{shim.pid}/ns/pid")
        os.kill(shim.pid, signal.SIGKILL)
        assert await shim.ended() == -signal.SIGKILL
        await until(lambda: processes_of(namespace) == [])
    assert str(box.directory) not in Path("/proc/mounts").read_text()


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        pytest.param([("root", "no/such")], "entering its root: No such", id="no root"),
        pytest.param([("root", "report")], "entering its root: Not a dir", id="no directory"),
        pytest.param([("root", "vm")], "/bin/bash: No such file", id="no program"),
        pytest.param([("root", "vm/root"), ("pass", "900")], "wrong pass: 900", id="pass"),
    ],
)
async def test_an_engine_that_cannot_be_started_says_why(box, steps, sentence):
    with pytest.raises(ShimError, match=sentence):
        async with await box.open("true", *steps) as shim:
            await shim.control.request("start")
    assert box.report() == ""


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pass", ("", "x", "-1", "0", "2", "987", "3x", f"{1 << 40}")),
        ("root", ("",)),
        (
            "user",
            ("", "5", "5:", ":5", "x:5", "5:x", "0:5", "5:0", "-5:5", "5:5:5", f"{1 << 32}:5"),
        ),
        ("file_size", ("", "0", "-1", "x", "5x", f"{1 << 63}", f"{1 << 70}")),
    ],
)
async def test_a_wrong_value_is_refused(tmp_path, name, values):
    for value in values:
        with pytest.raises(ShimError, match=f"^.*the plan has a wrong {name}: {value}$"):
            await ShimProcess.open(tmp_path, steps=[(name, value)])


@pytest.mark.parametrize("value", ["", "target", "target:", ":{0}/link", "target:{0}/no/link"])
async def test_a_link_that_cannot_be_made_is_refused(tmp_path, value):
    with pytest.raises(ShimError, match="symlink="):
        await ShimProcess.open(tmp_path, steps=[("symlink", value.format(tmp_path))])
    assert not (tmp_path / "link").is_symlink()


async def test_so_many_descriptors_and_no_more_are_passed(box, tmp_path):
    given = [memfd(b"") for _ in range(PASSED_MAX - 1)]  # and the report
    passed = [("pass", str(fd)) for fd in given]
    count = await box.confined("ls /proc/$$/fd | wc -l", *passed, descriptors=given)
    assert int(count) == PASSED_MAX + 3
    one_too_many = [memfd(b"") for _ in range(PASSED_MAX + 1)]
    passed = [("pass", str(fd)) for fd in one_too_many]
    with pytest.raises(ShimError, match="the plan has a wrong pass"):
        await ShimProcess.open(tmp_path, steps=passed, descriptors=one_too_many)
