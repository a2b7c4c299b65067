"""Who is let in, what that wakes, and what those get who are not."""

import asyncio
import contextlib
import signal

import asyncssh
import pytest

from magsd.gateway.ssh import SshGateway
from magsd.gateway.ssh_settings import SshSettings
from magsd.model.errors import CapacityError, ConflictError, NotFoundError
from tests.integration.shim_process import until
from tests.integration.ssh_world import HOST, PATIENCE_S, Key, world


@pytest.fixture
async def vm(tmp_path):
    async with world(tmp_path) as made:
        yield made


async def test_a_key_that_opens_nothing_is_refused_and_wakes_nothing(vm):
    stranger = Key(vm.folder / "stranger")
    done = await vm.ssh("true", key=stranger)
    assert done.code == 255
    assert b"Permission denied (publickey)" in done.err
    assert vm.node.looked_up == [stranger.fingerprint]
    assert vm.node.leased == []


async def test_other_kinds_of_keys_are_not_even_looked_up(vm):
    for kind in ("ssh-rsa", "ecdsa-sha2-nistp256"):
        done = await vm.ssh("true", key=Key(vm.folder / kind, kind))
        assert b"Permission denied" in done.err
    assert vm.node.looked_up == []


async def test_another_user_is_told_who_there_is(vm):
    done = await vm.ssh("true", user="ubuntu")
    assert done.code == 255
    assert b"log in as root" in done.err
    assert (vm.node.looked_up, vm.node.leased) == ([], [])


async def test_to_know_a_public_key_opens_nothing(vm):
    class Forged(asyncssh.SSHKeyPair):
        """Shows a public key, and signs with the private half of another."""

        _key_type = "forged"

        def __init__(self, shown, pair):
            super().__init__(
                shown.algorithm, shown.algorithm, (shown.algorithm,), (), shown.public_data, None
            )
            self._pair = pair

        def sign(self, data):
            return self._pair.sign(data, b"ssh-ed25519")

    mine = Key(vm.folder / "mine")
    theirs = vm.key.pair.convert_to_public()
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            HOST,
            vm.port,
            username="root",
            known_hosts=None,
            client_keys=[Forged(theirs, mine.pair)],
            config=None,
        )
    assert vm.node.looked_up == [vm.key.fingerprint] * 2
    assert vm.node.leased == []


async def test_passwords_are_not_asked_for(vm):
    options = ("PreferredAuthentications=password,keyboard-interactive", "PubkeyAuthentication=no")
    done = await vm.ssh("true", options=options)
    assert b"Permission denied (publickey)" in done.err


async def test_twenty_keys_may_be_tried_and_no_more(vm):
    strangers = [Key(vm.folder / f"stranger{number}") for number in range(21)]

    def words(count):
        several = [word for key in strangers[:count] for word in ("-i", str(key.path))]
        return [*vm.ssh_words("true", key=strangers[0])[:-2], *several, "-i", str(vm.key.path)]

    target = [f"root@{HOST}", "true"]
    assert (await vm.run([*words(20), *target])).code == 0
    done = await vm.run([*words(21), *target])
    assert done.code == 255
    assert b"too many tries" in done.err


async def test_a_sandbox_that_is_woken_is_waited_for(vm):
    vm.node.is_awake.clear()
    process = await vm.start(vm.ssh_words("echo awake; exit 2"))
    await until(lambda: len(vm.node.leased) == 1)
    vm.node.is_awake.set()
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    assert (process.returncode, out) == (2, b"awake\n")


async def test_a_client_that_leaves_while_it_waits_leaves_nothing(vm):
    vm.node.is_awake.clear()
    process = await vm.start(vm.ssh_words("true"))
    await until(lambda: len(vm.node.leased) == 1)
    process.kill()
    await process.communicate()
    await until(lambda: vm.gateway.connection_count == 0)
    assert vm.node.held == 0


@pytest.mark.parametrize("kind", [NotFoundError, ConflictError, CapacityError])
async def test_why_there_is_no_sandbox_is_said(vm, kind):
    vm.node.fail_lease = kind("the job is over: submit it again")
    done = await vm.ssh("true")
    assert (done.code, done.err) == (255, b"mags: the job is over: submit it again\n")
    done = await vm.ssh("-N")
    assert done.code == 255
    assert b"the job is over: submit it again" in done.err
    done = await vm.ssh("-W", "localhost:80")
    assert b"the job is over: submit it again" in done.err


async def test_a_node_that_is_away_is_told_of(vm):
    vm.node.fail_find = CapacityError("the node is away: try again")
    done = await vm.ssh("true")
    assert done.code == 255
    assert b"the node is away: try again" in done.err


async def test_who_does_not_log_in_is_dropped(tmp_path):
    async with world(tmp_path, login_grace_s=0.3) as vm:
        reader, writer = await asyncio.open_connection(HOST, vm.port)
        assert (await reader.readline()).startswith(b"SSH-2.0-mags")
        async with asyncio.timeout(PATIENCE_S):
            await reader.read()
        writer.close()
        await until(lambda: vm.gateway.connection_count == 0)


async def test_a_connection_too_many_is_refused_and_room_again_later(tmp_path):
    async with world(tmp_path, connections_max=2) as vm:
        held = [await asyncio.open_connection(HOST, vm.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection(HOST, vm.port)
        assert b"too many connections" in await reader.read()
        for _, each in [*held, (reader, writer)]:
            each.close()
        await until(lambda: vm.gateway.connection_count == 0)
        assert (await vm.ssh("echo in")).out == b"in\n"


async def test_slow_handshakes_keep_nobody_out(tmp_path):
    async with world(tmp_path, handshakes_max=3) as vm:
        slow = [await asyncio.open_connection(HOST, vm.port) for _ in range(8)]
        assert (await vm.ssh("echo in")).out == b"in\n"
        for _, writer in slow:
            writer.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100_000),
        b"SSH-2.0-x\r\n" + b"\xff" * 100_000,
        b"SSH-1.5-x\r\n",
    ],
)
async def test_nonsense_ends_its_connection_only(vm, nonsense):
    reader, writer = await asyncio.open_connection(HOST, vm.port)
    writer.write(nonsense)
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()
    assert (await vm.ssh("echo in")).out == b"in\n"


async def test_old_algorithms_are_not_spoken(vm):
    for option in (
        "KexAlgorithms=diffie-hellman-group14-sha256",
        "Ciphers=aes128-cbc",
        "MACs=hmac-sha1",
    ):
        more = ("Ciphers=aes128-ctr",) if option.startswith("MACs") else ()
        done = await vm.ssh("true", options=(option, *more))
        assert b"no matching" in done.err
    for cipher in ("chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr"):
        assert (await vm.ssh("echo in", options=(f"Ciphers={cipher}",))).out == b"in\n"


async def test_the_keys_are_changed_under_way(vm):
    data = bytes(5_000_000)
    done = await vm.ssh("cat", input=data, options=("RekeyLimit=1M",))
    assert (done.code, done.out == data) == (0, True)


async def test_a_client_that_never_answers_is_gone_in_the_end(tmp_path):
    async with world(tmp_path, keepalive_s=0.1) as vm:
        process = await vm.start(vm.ssh_words("exec sleep 1000"))
        await until(lambda: len(vm.shim.processes()) == 2)
        process.send_signal(signal.SIGSTOP)
        await until(lambda: vm.gateway.connection_count == 0)
        assert vm.node.held == 0
        process.kill()
        await process.communicate()


async def test_a_quiet_connection_stays(tmp_path):
    async with world(tmp_path, keepalive_s=0.05) as vm:
        assert (await vm.ssh("sleep 1; echo still")).out == b"still\n"


def test_a_host_key_that_is_none_is_told_at_once():
    with pytest.raises(asyncssh.KeyImportError):
        SshGateway(None, SshSettings(host_key=b"none"))


def test_settings_do_not_show_the_host_key():
    assert "secret" not in repr(SshSettings(host_key=b"secret"))
