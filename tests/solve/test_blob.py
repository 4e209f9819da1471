from __future__ import annotations

import struct

import numpy as np
import pytest

from graphopt.errors import KernelError
from graphopt.solve.blob import BlobFormat

FORMAT = BlobFormat(b"GOTEST\r\n", 3, "4Q2I8x", "test weight")
SECTIONS = (np.arange(5, dtype="<u2"), np.zeros(0, "<f4"), np.linspace(0, 1, 33).astype("<f4"))


def packed() -> np.ndarray:
    return FORMAT.write(SECTIONS, (7,), (8, 9))


def test_blob_sections_lie_at_multiples_of_64_behind_a_hashed_header() -> None:
    blob = packed()
    data = blob.tobytes()
    assert blob.dtype == np.uint8
    assert FORMAT.header_bytes == 80
    field, *offsets, first, second = FORMAT.read(blob)
    assert (field, first, second) == (7, 8, 9)
    assert offsets == [128, 192, 192]
    assert blob.nbytes == 192 + 33 * 4
    for array, offset in zip(SECTIONS, offsets, strict=True):
        assert np.array_equal(np.frombuffer(data, array.dtype, len(array), offset), array)
    assert struct.unpack_from("<8s2IQ", data) == (b"GOTEST\r\n", 3, 80, blob.nbytes)
    value = 0xCBF29CE484222325
    for byte in data[:72]:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    assert struct.unpack_from("<Q", data, 72) == (value,)
    assert not blob[80:128].any()


def test_blob_is_the_same_for_the_same_sections() -> None:
    assert packed().tobytes() == packed().tobytes()


@pytest.mark.parametrize(
    ("damaged", "what"),
    [
        (packed()[:79], "the bytes are not a packed test weight"),
        (np.zeros(200, np.uint8), "the bytes are not a packed test weight"),
        (np.append(packed(), np.uint8(0)), f"version 3 with {packed().nbytes + 1} bytes cannot be read"),
        (BlobFormat(b"GOTEST\r\n", 4, "4Q2I8x", "test weight").write(SECTIONS, (7,), (8, 9)), "of version 4"),
        *(
            (np.where(np.arange(packed().size) == place, packed() ^ 1, packed()), "cannot be read")
            for place in (8, 12, 24, 71, 79)
        ),
    ],
)
def test_blob_of_other_bytes_is_refused(damaged: np.ndarray, what: str) -> None:
    with pytest.raises(KernelError, match=what) as caught:
        FORMAT.read(damaged)
    assert "Pack the weight again." in str(caught.value)
