"""Sound pictures of more pixels than are read, also where Pillow refuses before it tells a size."""

import struct
import zlib

import pytest

from clipskip import metadata, pictures
from clipskip.errors import CheckpointError, RequestError


def png(width: int, height: int) -> bytes:
    """The head of a PNG of this size, and no pixels."""
    head = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize(("side", "told"), [(9000, "it has 9000x9000 pixels"), (14000, "it has far too many pixels")])
def test_the_most_that_is_read_is_named(side, told, tmp_path):
    (tmp_path / "large.png").write_bytes(png(side, side))
    with pytest.raises(RequestError, match=f"cannot use image: {told}; at most 67 million are read"):
        pictures.opened("image", str(tmp_path / "large.png"))
    with pytest.raises(CheckpointError, match=f"{told}; a picture to read back has at most 33 million"):
        metadata.read_any(tmp_path / "large.png")
