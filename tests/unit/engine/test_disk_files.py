"""Where a disk image has data."""

from pathlib import Path

import pytest

from magsd.engine import disk_files

MB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """One with 9 MiB of data, a hole, and 1 MiB at its end."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(b"x" * 9 * MB)
        file.truncate(100 * MB)
        file.seek(99 * MB)
        file.write(b"y" * MB)
    return path


def pieces(image: Path, most_bytes: int) -> list[tuple[int, int]]:
    with image.open("rb") as file:
        return list(disk_files.pieces_of(file.fileno(), most_bytes))


def test_pieces_are_of_all_data_and_of_no_hole(image: Path) -> None:
    found = pieces(image, 1 << 30)
    assert found == [(0, 4 * MB), (4 * MB, 4 * MB), (8 * MB, MB), (99 * MB, MB)]


@pytest.mark.parametrize("most_bytes", [0, 1, 6 * MB, 9 * MB, 9 * MB + 1])
def test_no_more_is_read_than_may_be(image: Path, most_bytes: int) -> None:
    assert sum(size for _, size in pieces(image, most_bytes)) == most_bytes


def test_what_is_wanted_soon_stays_what_it_is(image: Path) -> None:
    before = image.read_bytes()
    with image.open("rb") as file:
        for at, size in disk_files.pieces_of(file.fileno(), 1 << 30):
            disk_files.will_need(file.fileno(), at, size)
    assert image.read_bytes() == before


def test_one_without_data_has_no_pieces(tmp_path: Path) -> None:
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(MB)
    assert pieces(path, MB) == []
