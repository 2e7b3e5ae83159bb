import struct

import pytest
import torch

from gradmem_bench.quantization import decode, encode, encoded_bytes, encoding, vector_bytes

DTYPES = ("float32", "bfloat16", "int8", "int4")


def scale_of(value: float) -> bytes:
    """The upper half of a float32: bfloat16, for a number that it holds exactly."""
    return struct.pack("<f", value)[2:]


def test_int8_by_hand():
    # Scales of 2 and 0.5: 254 = 2 * 127 and -63.5 = 0.5 * -127; 3 lies between 1 and 2 steps, and goes to the even one.
    data = encode(torch.tensor([[254.0, -2.0, 3.0], [0.0, 0.6, -63.5]]), "int8")
    assert bytes(data.tolist()) == scale_of(2) + scale_of(0.5) + struct.pack("<6b", 127, -1, 2, 0, 1, -127)
    assert decode(data, "int8", (2, 3)).tolist() == [[254.0, -2.0, 4.0], [0.0, 0.5, -63.5]]


def test_int4_by_hand_with_a_half_byte_left_over():
    # Scale 2: 7, -1, 0 in steps, each 8 higher, the first in the low half; the half byte at the end is 0.
    data = encode(torch.tensor([[14.0, -2.0, 0.4]]), "int4")
    assert bytes(data.tolist()) == scale_of(2) + bytes([15 | 7 << 4, 8])
    assert decode(data, "int4", (1, 3)).tolist() == [[14.0, -2.0, 0.0]]


@pytest.mark.parametrize(("dtype", "sizes"), [("float32", 512), ("bfloat16", 256), ("int8", 130), ("int4", 66)])
def test_a_vector_of_128_numbers_costs(dtype, sizes):
    assert vector_bytes(128, dtype) == sizes
    assert encoded_bytes((3, 5, 128), dtype) == 15 * sizes == len(encode(torch.randn(3, 5, 128), dtype))


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize(("dtype", "levels"), [("int8", 127), ("int4", 7)])
def test_no_number_is_moved_by_more_than_half_a_step_and_what_the_scale_is_rounded_by(dtype, levels, size):
    generator = torch.Generator().manual_seed(1)
    # Magnitudes from 1e-30 to 1e30, and vectors where one number is far above the rest.
    vectors = torch.randn(4000, size, generator=generator, dtype=torch.float64)
    vectors = vectors * 10.0 ** torch.empty(4000, 1, dtype=torch.float64).uniform_(-30, 30, generator=generator)
    vectors[::3, 0] *= 50
    vectors = vectors.float()
    back = decode(encode(vectors, dtype), dtype, tuple(vectors.shape))
    errors = (back.double() - vectors.double()).abs().amax(dim=1)
    allowed = (1 + 2**-8) * vectors.double().abs().amax(dim=1) / (2 * levels)
    assert (errors <= allowed).all()
    # The bound is no empty one: some vector comes close to it.
    assert float((errors / allowed).max()) > 0.9 or size == 1


def test_bfloat16_is_rounded_to_nearest():
    numbers = torch.randn(50, 9)
    assert torch.equal(decode(encode(numbers, "bfloat16"), "bfloat16", (50, 9)), numbers.bfloat16().float())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_zeros_stay_zeros_and_what_is_not_finite_shows(dtype):
    numbers = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [float("inf"), 1.0], [-1.0, 1.0]])
    back = decode(encode(numbers, dtype), dtype, (4, 2))
    assert back[0].tolist() == [0.0, 0.0]
    assert back[1:3].isnan().all()
    assert back[3].tolist() == pytest.approx([-1.0, 1.0], rel=2**-8)


def test_only_what_becomes_narrower_is_encoded():
    full, half = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bfloat16)
    assert [encoding(full, dtype) for dtype in DTYPES] == [None, "bfloat16", "int8", "int4"]
    assert [encoding(half, dtype) for dtype in DTYPES] == [None, None, "int8", "int4"]
    for other in (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64), torch.empty(2, 0)):
        assert [encoding(other, dtype) for dtype in DTYPES] == [None] * 4


def test_a_single_number_is_a_vector_of_one():
    for dtype in ("int8", "int4"):
        data = encode(torch.tensor(3.0), dtype)
        assert len(data) == encoded_bytes((), dtype) == 3
        assert float(decode(data, dtype, ())) == pytest.approx(3.0, rel=2**-8)
