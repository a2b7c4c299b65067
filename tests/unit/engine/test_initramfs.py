"""The archive that a microVM starts with, read back by its own format."""

from magsd.engine import initramfs


def entries(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Read a `newc` archive: mode, content and device numbers by name."""
    found, position = {}, 0
    while True:
        assert archive[position : position + 6] == b"070701"
        head = archive[position + 6 : position + 110]
        fields = [int(head[i : i + 8], 16) for i in range(0, 104, 8)]
        mode, size, device, name_size = fields[1], fields[6], tuple(fields[9:11]), fields[11]
        name = archive[position + 110 : position + 110 + name_size - 1].decode()
        start = position + -(-(110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size], device)
        position = start + -(-size // 4) * 4


def test_it_holds_the_agent_and_the_modules_in_their_order(tmp_path):
    agent = tmp_path / "mags-agent"
    agent.write_bytes(b"\x7fELF agent")
    modules = [tmp_path / name for name in ("b.ko", "a.ko")]
    for module in modules:
        module.write_bytes(module.name.encode() * 3)
    found = entries(initramfs.build(agent, modules))
    assert found["init"][:2] == (0o100755, b"\x7fELF agent")
    assert found["modules/order"][1] == b"b.ko\na.ko\n"
    assert found["modules/a.ko"][:2] == (0o100644, b"a.koa.koa.ko")
    assert (found["dev/console"][0], found["dev/console"][2]) == (0o020600, (5, 1))
    assert {"proc", "sys", "dev", "layers", "disk", "root"} <= found.keys()
    names = list(found)
    assert names.index("modules") < names.index("modules/b.ko")


def test_the_same_files_give_the_same_bytes(tmp_path):
    agent = tmp_path / "mags-agent"
    agent.write_bytes(b"x")
    first = initramfs.build(agent, [])
    agent.touch()
    assert initramfs.build(agent, []) == first
