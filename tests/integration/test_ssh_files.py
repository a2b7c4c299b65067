"""Files by OpenSSH's scp and sftp, and by rsync, through the agent's own SFTP server."""

import os
import shutil

import pytest

from tests.integration.ssh_world import world

MEGABYTE = 1 << 20


@pytest.fixture
async def vm(tmp_path):
    async with world(tmp_path) as made:
        yield made


@pytest.fixture
def inside(tmp_path):
    """A folder that the VM sees as its own."""
    folder = tmp_path / "inside"
    folder.mkdir()
    return folder


def tree(folder) -> None:
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/file").write_bytes(b"deep")
    (folder / "a/empty").write_bytes(b"")
    (folder / "a/run").write_text("#!/bin/sh\n")
    (folder / "a/run").chmod(0o755)


def same_tree(folder) -> bool:
    return (
        (folder / "b/file").read_bytes() == b"deep"
        and (folder / "empty").read_bytes() == b""
        and (folder / "run").stat().st_mode & 0o777 == 0o755
    )


@pytest.mark.parametrize("how", ["-s", "-O"])
async def test_scp_takes_files_and_folders_both_ways(vm, inside, how):
    if how == "-O" and shutil.which("scp") is None:
        pytest.skip("the VM sees this machine's programs, and scp is not among them")
    big = os.urandom(MEGABYTE) * 100
    (vm.folder / "big").write_bytes(big)
    tree(vm.folder)
    for words in (("big", f"remote:{inside}/big"), ("-r", "a", f"remote:{inside}/tree")):
        words = [str(vm.folder / word) if word in ("big", "a") else word for word in words]
        done = await vm.copy("scp", how, "-p", *words)
        assert (done.code, done.err) == (0, b"")
    assert (inside / "big").read_bytes() == big
    assert same_tree(inside / "tree")
    back = vm.folder / "back"
    done = await vm.copy("scp", how, "-p", "-r", f"remote:{inside}", str(back))
    assert (done.code, done.err) == (0, b"")
    assert (back / "big").read_bytes() == big
    assert same_tree(back / "tree")


async def test_scp_says_what_is_not_there(vm, inside):
    done = await vm.copy("scp", f"remote:{inside}/none", str(vm.folder / "x"))
    assert done.code == 1
    assert b"No such file" in done.err


async def test_sftp_does_what_its_commands_say(vm, inside):
    (vm.folder / "file").write_bytes(b"content")
    batch = f"""
cd {inside}
put {vm.folder}/file one
rename one two
ln -s two link
mkdir folder
chmod 600 two
ls -l
get two {vm.folder}/back
-rm none
rm link
rmdir folder
pwd
"""
    done = await vm.copy("sftp", "-b", "-", "remote:", input=batch.encode())
    assert done.code == 0, done.err
    assert (vm.folder / "back").read_bytes() == b"content"
    assert os.listdir(inside) == ["two"]
    assert (inside / "two").stat().st_mode & 0o777 == 0o600
    for words in (b"folder", b"link", f"Remote working directory: {inside}".encode()):
        assert words in done.out


async def test_a_link_shows_the_guests_path_and_begins_in_root(vm, inside):
    done = await vm.copy(
        "sftp", "-b", "-", "remote:", input=f"pwd\nln -s /etc/hosts {inside}/link\n".encode()
    )
    assert b"Remote working directory: /root" in done.out
    assert os.readlink(inside / "link") == "/etc/hosts"


async def test_rsync_both_ways(vm, inside):
    tree(vm.folder)
    (vm.folder / "a/big").write_bytes(os.urandom(MEGABYTE) * 20)
    shell = " ".join(["ssh", *vm.options(), "-i", str(vm.key.path), "-p", str(vm.port)])
    remote = f"root@127.0.0.1:{inside}/"
    done = await vm.run(["rsync", "-a", "-e", shell, f"{vm.folder}/a/", remote])
    assert (done.code, done.err) == (0, b"")
    assert same_tree(inside)
    done = await vm.run(["rsync", "-a", "-e", shell, remote, f"{vm.folder}/back/"])
    assert (done.code, done.err) == (0, b"")
    assert (vm.folder / "back/big").read_bytes() == (vm.folder / "a/big").read_bytes()


async def test_other_subsystems_are_refused(vm):
    done = await vm.ssh("-s", "netconf")
    assert done.code != 0
    assert b"subsystem request failed" in done.err
    assert (await vm.ssh("echo usable")).out == b"usable\n"
