"""The headers that we write are those of the standard library, byte for byte."""

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.tar_writer import member_header


def slow_header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size
    return header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1)


@given(NAMES, st.integers(0, 8**11 - 1))
def test_header_is_that_of_tarfile(name: str, size: int) -> None:
    if len(name.encode()) <= 100:
        assert member_header(name, size) == slow_header(name, size)


@pytest.mark.parametrize("length", [99, 100])
def test_longest_names(length: int) -> None:
    assert member_header("n" * length, 7) == slow_header("n" * length, 7)
    assert tarfile.TarInfo.frombuf(member_header("é" * 45, 7), "utf-8", "strict").name == "é" * 45


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 7), ("n", 8**11)])
def test_what_the_format_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"too long|overflow"):
        member_header(name, size)
