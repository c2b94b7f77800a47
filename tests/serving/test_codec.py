"""Frames are read to the byte as the clients of others write them, and nothing in a frame does harm."""

import io
import pickle

import msgpack
import numpy as np
import pytest
from PIL import Image

from vlatrack.errors import ProtocolError, VlatrackError
from vlatrack.inference.observation import Interface
from vlatrack.serving.cameras import ObservationReader
from vlatrack.serving.codec import pack_openpi, pack_vla_eval, unpack, with_arrays
from vlatrack.serving.pictures import MOST_PIXELS

OPENPI_ARRAY = bytes.fromhex(
    "81a17884c40b5f5f6e6461727261795f5fc3c40464617461c403000102c4056474797065a37c7531c40573686170659103"
)
"""{"x": uint8 [0, 1, 2]} as openpi's clients write it."""


def array(**changed: object) -> bytes:
    entry = {"__ndarray__": True, "data": bytes(6), "dtype": "|u1", "shape": [2, 3]}
    return msgpack.packb({"x": entry | changed})


def picture(kind: str, **changed: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, kind)
    return msgpack.packb({"__image__": True, "format": kind, "data": file.getvalue(), "shape": [4, 4, 3]} | changed)


def test_an_array_is_packed_to_the_byte_as_openpi_does() -> None:
    assert pack_openpi({"x": np.arange(3, dtype=np.uint8)}) == OPENPI_ARRAY


def test_an_array_of_openpi_is_read_and_cannot_be_written_to() -> None:
    found = with_arrays(unpack(OPENPI_ARRAY))["x"]
    assert (found.tolist(), found.dtype, found.flags.writeable) == ([0, 1, 2], np.uint8, False)


@pytest.mark.parametrize("pack", [pack_openpi, pack_vla_eval])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "|b1", "<f2", "<U3"])
def test_what_is_packed_is_what_is_read(pack, dtype: str) -> None:
    content = {"a": np.arange(6).reshape(2, 3).astype(dtype), "deep": [{"b": np.zeros((0, 4), dtype)}], "n": 3}
    found = with_arrays(unpack(pack(content)))
    assert np.array_equal(found["a"], content["a"])
    assert found["a"].dtype == dtype
    assert found["deep"][0]["b"].shape == (0, 4)


def test_a_number_of_numpy_keeps_its_type_with_openpi_and_is_a_plain_one_with_vla_eval() -> None:
    assert isinstance(with_arrays(unpack(pack_openpi({"x": np.float32(0.5)})))["x"], np.float32)
    assert unpack(pack_vla_eval({"x": np.float32(0.5)})) == {"x": 0.5}


def test_pictures_are_decoded() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(with_arrays(unpack(picture("png"))), pixels)
    assert with_arrays(unpack(picture("jpeg"))).shape == (4, 4, 3)
    raw = {"__image__": True, "format": "raw", "data": pixels.tobytes(), "dtype": "|u1", "shape": [4, 4, 3]}
    assert np.array_equal(with_arrays(unpack(msgpack.packb(raw))), pixels)


def test_a_grey_picture_has_one_channel() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 5), np.uint8)).save(file, "png")
    entry = {"__image__": True, "data": file.getvalue(), "shape": [2, 5, 1]}
    assert with_arrays(entry).shape == (2, 5, 1)


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (b"\x81\xa1x", "no msgpack"),  # ends too early
        (b"\x01\x02", "no msgpack"),  # goes on
        (b"\x81\x90\x01", "no msgpack"),  # a list as key
        (b"\xa2\xff\xfe", "no msgpack"),  # no UTF-8
        (b"\xdd\xff\xff\xff\xff", "no msgpack"),  # a list of four billion
        (b"\x91" * 5000 + b"\x01", "no msgpack|nested"),
        (b"\x91" * 40 + b"\x01", "nested more than 16 deep"),
        (msgpack.packb(msgpack.ExtType(5, b"code")), "no msgpack"),
        (msgpack.packb([[0] * 9000] * 12), "more than 100,000 values"),
        (pickle.dumps({"a": 1}), "no msgpack"),
        (array(dtype="|O"), r"type '\|O'; expected a number type"),
        (array(dtype="<c8"), "expected a number type"),
        (array(dtype="|V6"), "expected a number type"),
        (array(dtype="f4,f4"), "expected a number type"),
        (array(dtype=["a"]), "expected a number type"),
        (array(dtype="<f1"), "expected a number type"),
        (array(shape=[2, 4]), r"\[2, 4\] has 8 bytes, but 6 came"),
        (array(dtype="<f4"), "has 24 bytes, but 6 came"),
        (array(shape=[-2, -3]), "no numbers of 0 or more"),
        (array(shape=[2.0, 3]), "no numbers of 0 or more"),
        (array(shape=6), "shape as a list"),
        (array(data="text"), "data as bytes"),
        (array(data=b"", shape=[0, 2**62, 2**62]), "no array has the shape"),
        (msgpack.packb({"__npgeneric__": True, "data": [1], "dtype": "<f4"}), "its data is none"),
        (msgpack.packb({"__npgeneric__": True, "data": "a", "dtype": "<f4"}), "does not fit"),
        (picture("png", format="gif"), "of format 'gif'"),
        (picture("png", format="jpeg"), "jpeg is damaged"),
        (picture("png", data=b"\x89PNG\r\n\x1a\n" + bytes(40)), "png is damaged"),
        (picture("png", data=None), "expected the bytes"),
        (picture("png", shape=[4, 4, 4]), r"is uint8 \[4, 4, 3\], but says \[4, 4, 4\]"),
    ],
)
def test_what_no_client_sends_is_one_line(frame: bytes, told: str) -> None:
    with pytest.raises(ProtocolError, match=told) as raised:
        with_arrays(unpack(frame))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


def test_a_picture_with_very_many_pixels_is_refused_before_they_are_decoded() -> None:
    file = io.BytesIO()
    Image.new("L", (8000, MOST_PIXELS // 8000 + 1)).save(file, "png")
    assert len(file.getvalue()) < 50_000
    with pytest.raises(ProtocolError, match="more than"):
        with_arrays({"__image__": True, "format": "png", "data": file.getvalue()})


def test_frames_with_flipped_bytes_are_read_or_refused_and_nothing_else() -> None:
    reader = ObservationReader(Interface(("front",), 2, 2, 3, 2), {})
    whole = {"observation/image": np.zeros((2, 3, 3), np.uint8), "observation/state": np.zeros(2), "prompt": "push"}
    frames = [pack_openpi(whole), pack_vla_eval(whole | {"images": [1, 2.5, None]}), picture("png")]
    generator, refused = np.random.default_rng(0), 0
    for turn in range(3000):
        frame = np.frombuffer(frames[turn % 3], np.uint8).copy()
        places = generator.integers(0, len(frame), generator.integers(1, 4))
        frame[places] = generator.integers(0, 256, len(places))
        try:
            reader.read(with_arrays(unpack(frame.tobytes())))
        except VlatrackError:
            refused += 1
    assert 1500 < refused < 3000
