import json
import struct

import pytest
import torch

from gradmem_bench.errors import UserError
from gradmem_bench.state import MemoryState

# How many bytes one element of each type takes, by its name.
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}


def random_tensor(dtype: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (torch.rand(shape, generator=generator) * 100).to(getattr(torch, dtype))


def payload(data: bytes) -> bytes:
    return data[4 + struct.unpack("<I", data[:4])[0] :]


@pytest.mark.parametrize("dtype", SIZES)
def test_bytes_give_the_same_state_back(dtype):
    lengths = [3, 0, 5]
    cache = random_tensor(dtype, 3, 5, 2, 2)
    state = MemoryState(
        {"memory": random_tensor(dtype, 3, 4, 6), "cache": cache, "scale": random_tensor("float32", 3)},
        frozenset({"cache"}),
        torch.tensor(lengths),
    )
    rows = state.to_bytes()
    # Hand-worked: 4 x 6 elements of memory, 2 x 2 for each position of the cache, one scale of 4 bytes.
    expected = [SIZES[dtype] * (24 + 4 * length) + 4 for length in lengths]
    assert state.nbytes() == expected
    assert [len(payload(row)) for row in rows] == expected

    back = MemoryState.from_bytes(rows)
    assert len(back) == 3 and back.ragged == {"cache"} and back.lengths.tolist() == lengths
    for name in ("memory", "scale"):
        assert back.tensors[name].dtype == state.tensors[name].dtype
        assert torch.equal(back.tensors[name], state.tensors[name])
    assert back.tensors["cache"].dtype == cache.dtype
    for row, length in enumerate(lengths):
        assert torch.equal(back.tensors["cache"][row, :length], cache[row, :length])
        assert not back.tensors["cache"][row, length:].any()


def test_the_payload_is_the_numbers_in_little_endian_order_and_nothing_else():
    state = MemoryState({"b": torch.tensor([[1.0, -2.5]]), "a": torch.tensor([[258]], dtype=torch.int16)})
    (row,) = state.to_bytes()
    assert payload(row) == struct.pack("<h", 258) + struct.pack("<2f", 1.0, -2.5)


@pytest.mark.parametrize(
    ("dtype", "memory", "position"),
    # 4 vectors of 6 numbers; for each position of the cache 2 vectors of 2. Scales are 2 bytes each.
    [("float32", 4 * 24, 2 * 8), ("bfloat16", 4 * 12, 2 * 4), ("int8", 4 * 8, 2 * 4), ("int4", 4 * 5, 2 * 3)],
)
def test_a_narrower_state_is_fewer_bytes_for_real(dtype, memory, position):
    lengths = [3, 0, 5]
    text = torch.randint(0, 100, (3, 7), dtype=torch.uint8)
    tensors = {"memory": random_tensor("float32", 3, 4, 6), "cache": random_tensor("float32", 3, 5, 2, 2), "text": text}
    state = MemoryState(tensors, frozenset({"cache"}), torch.tensor(lengths))
    rows = state.to_bytes(dtype)
    expected = [memory + position * length + 7 for length in lengths]
    assert state.nbytes(dtype) == expected == [len(payload(row)) for row in rows]

    back = MemoryState.from_bytes(rows)
    assert back.ragged == {"cache"} and back.lengths.tolist() == lengths
    assert torch.equal(back.tensors["text"], text)
    for name in ("memory", "cache"):
        assert back.tensors[name].dtype == torch.float32
        found = [back.tensors[name][row, : lengths[row] if name == "cache" else 4] for row in range(3)]
        wanted = [tensors[name][row, : lengths[row] if name == "cache" else 4] for row in range(3)]
        step = {"float32": 0, "bfloat16": 2**-8, "int8": 1 / 250, "int4": 1 / 13.9}[dtype]
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=step * 100)
            assert dtype == "float32" or not len(one) or not torch.equal(one, other)


def test_what_a_state_was_before_it_is_again():
    state = MemoryState({"memory": random_tensor("bfloat16", 2, 3, 4)})
    assert state.nbytes("float32") == state.nbytes("bfloat16") == [24, 24]
    assert torch.equal(MemoryState.from_bytes(state.to_bytes("float32")).tensors["memory"], state.tensors["memory"])
    back = MemoryState.from_bytes(state.to_bytes("int8"))
    assert state.nbytes("int8") == [18, 18] and back.tensors["memory"].dtype == torch.bfloat16


def test_padding_is_never_serialised():
    tensor = random_tensor("float32", 2, 6, 3)
    lengths = torch.tensor([2, 4])
    garbage = tensor.clone()
    garbage[0, 2:], garbage[1, 4:] = float("nan"), 1e9
    ragged = frozenset({"cache"})
    clean, dirty = (MemoryState({"cache": one}, ragged, lengths).to_bytes() for one in (tensor, garbage))
    assert clean == dirty
    # A context alone, never padded, is the same bytes.
    alone = MemoryState({"cache": tensor[:1, :2]}, ragged, torch.tensor([2])).to_bytes()
    assert alone == clean[:1]


def test_states_are_independent_of_their_neighbours_and_can_be_rearranged():
    state = MemoryState({"cache": random_tensor("bfloat16", 3, 4, 2)}, frozenset({"cache"}), torch.tensor([1, 4, 2]))
    rows = state.to_bytes()
    back = MemoryState.from_bytes([rows[2], rows[0]])
    assert back.lengths.tolist() == [2, 1]
    assert back.tensors["cache"].shape == (2, 2, 2)
    assert torch.equal(back.tensors["cache"][0], state.tensors["cache"][2, :2])
    assert torch.equal(back.tensors["cache"][1, 0], state.tensors["cache"][0, 0])


def test_a_state_made_in_training_and_not_contiguous():
    tensor = random_tensor("float32", 2, 3, 4).requires_grad_()
    back = MemoryState.from_bytes(MemoryState({"memory": tensor.transpose(1, 2)}).to_bytes())
    assert torch.equal(back.tensors["memory"], tensor.detach().transpose(1, 2))
    assert not back.tensors["memory"].requires_grad


def test_texts_cost_their_utf8_bytes():
    texts = ["", "!a:b!", "naïve", "記憶 🧠"]
    state = MemoryState.from_texts(texts)
    assert state.nbytes() == [0, 5, 6, 11]
    rows = state.to_bytes()
    assert [payload(row) for row in rows] == [text.encode() for text in texts]
    assert MemoryState.from_bytes(rows).texts() == texts
    assert MemoryState.from_bytes([rows[3], rows[1]]).texts() == [texts[3], texts[1]]


def test_an_empty_state_is_no_bytes():
    state = MemoryState({"nothing": torch.empty(2, 0)})
    assert state.nbytes() == [0, 0]
    assert MemoryState.from_bytes(state.to_bytes()).tensors["nothing"].shape == (2, 0)


def damaged() -> dict[str, bytes]:
    (good,) = MemoryState({"memory": torch.arange(6.0).reshape(1, 2, 3)}).to_bytes()

    def with_header(header: object) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<I", len(text)) + text + bytes(24)

    return {
        "no bytes": b"",
        "cut in the header": good[:10],
        "cut in the payload": good[:-1],
        "a byte too many": good + b"\0",
        "text": b"this is not a state at all, but a sentence",
        "header of no names": with_header([1, 2]),
        "unknown type": with_header({"memory": ["complex64", [2, 3], False]}),
        "shape of text": with_header({"memory": ["float32", ["2", 3], False]}),
        "negative shape": with_header({"memory": ["float32", [-2, 3], False]}),
        "two negatives": with_header({"memory": ["float32", [-2, -3], False]}),
        "two fields": with_header({"memory": ["float32", [2, 3]]}),
        "unknown encoding": with_header({"memory": ["float32", [2, 11], False, "int2"]}),
        "an encoding too short": with_header({"memory": ["float32", [2, 11], False, "int8"]}),
        "two encodings": with_header({"memory": ["float32", [2, 10], False, "int8", "int8"]}),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_bytes_are_refused(name):
    with pytest.raises(UserError, match="not a memory state, or are damaged"):
        MemoryState.from_bytes([damaged()[name]])


def test_states_of_two_methods_do_not_mix():
    vectors = MemoryState({"memory": torch.zeros(1, 2, 3)}).to_bytes()
    with pytest.raises(UserError, match="different names"):
        MemoryState.from_bytes(vectors + MemoryState.from_texts(["a"]).to_bytes())
    with pytest.raises(UserError, match="'memory' has different shapes"):
        MemoryState.from_bytes(vectors + MemoryState({"memory": torch.zeros(1, 4, 3)}).to_bytes())


def test_a_ragged_tensor_needs_lengths_and_a_name_that_exists():
    with pytest.raises(ValueError, match="need.* lengths"):
        MemoryState({"cache": torch.zeros(1, 2)}, frozenset({"cache"}))
    with pytest.raises(ValueError, match="ragged names"):
        MemoryState({"cache": torch.zeros(1, 2)}, frozenset({"cash"}), torch.tensor([1]))
