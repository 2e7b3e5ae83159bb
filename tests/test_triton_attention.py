"""The Triton kernels against softmax attention written out, in float64 and with autograd's double backward.

Where there is no GPU and TRITON_INTERPRET=1 is set, Triton's interpreter runs the kernels on the CPU.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1", allow_module_level=True)

from gradmem_bench import triton_attention  # noqa: E402

SCALE = 0.3
DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = ["output", "d_query", "d_key", "d_value", "g_query", "g_key", "g_value", "g_gradient"]
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="the interpreter is no GPU")]


@pytest.fixture(autouse=INTERPRETED)
def numbers_from_arrays(monkeypatch):
    """The interpreter's scalars are arrays of one, and NumPy from 2.4 on makes no loop bound of these."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def masked(kind: str, batch: int, queries: int, keys: int) -> torch.Tensor | None:
    causal = torch.ones(queries, keys, dtype=torch.bool, device=DEVICE).tril(keys - queries)
    if kind == "causal":
        return causal[None, None]
    if kind == "padded":
        # The last sample's first queries see nothing: what they could is padding.
        lengths = torch.arange(batch, device=DEVICE) * (keys - queries // 2) // max(1, batch - 1)
        return causal & (torch.arange(keys, device=DEVICE) >= lengths[:, None])[:, None, None]
    if kind == "scattered":
        # Keys far apart in memory, queries near.
        generator = torch.Generator(DEVICE).manual_seed(1)
        return (torch.rand(batch, 1, keys, queries, generator=generator, device=DEVICE) > 0.6).transpose(-1, -2)
    return None


def draw(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key, value, gradient and the three cotangents, heads inside of positions in memory."""
    batch, heads, queries, keys, head = shape
    generator = torch.Generator(DEVICE).manual_seed(0)
    return [
        torch.randn(batch, length, heads, head, generator=generator, device=DEVICE).to(dtype).transpose(1, 2)
        for length in (queries, keys, keys, queries, queries, keys, keys)
    ]


def kernels(tensors, mask) -> dict[str, torch.Tensor]:
    query, key, value, gradient, *cotangents = tensors
    output, normalizers = triton_attention.forward(query, key, value, mask, SCALE)
    *first, deltas = triton_attention.backward(query, key, value, gradient, output, normalizers, mask, SCALE)
    second = triton_attention.double_backward(
        query, key, value, gradient, deltas, normalizers, mask, SCALE, *cotangents
    )
    return dict(zip([*NAMES, "normalizers", "deltas"], [output, *first, *second, normalizers, deltas], strict=True))


def written_out(tensors, mask) -> dict[str, torch.Tensor]:
    *inputs, gradient = (tensor.double().requires_grad_() for tensor in tensors[:4])
    query, key, value = inputs
    scores = SCALE * query @ key.transpose(-1, -2)
    some = torch.ones_like(scores[..., :1], dtype=torch.bool)
    if mask is not None:
        scores, some = scores.masked_fill(~mask, -torch.inf), mask.any(dim=-1, keepdim=True)
    # A row that sees nothing: softmax makes it NaN, and here it is zero.
    output = torch.where(some, torch.softmax(scores, dim=-1), 0.0) @ value
    first = torch.autograd.grad(output, inputs, gradient, create_graph=True)
    second = torch.autograd.grad(first, [*inputs, gradient], [tensor.double() for tensor in tensors[4:]])
    normalizers = scores.logsumexp(dim=-1).masked_fill(~some[..., 0], torch.inf)
    deltas = (gradient * output).sum(dim=-1)
    found = [output, *first, *second, normalizers, deltas]
    return {name: one.detach() for name, one in zip([*NAMES, "normalizers", "deltas"], found, strict=True)}


def check(tensors, mask, tolerance: float) -> None:
    ours, expected = kernels(tensors, mask), written_out(tensors, mask)
    for name in NAMES:
        assert ours[name].dtype == tensors[0].dtype and ours[name].shape == expected[name].shape
        distance = (ours[name].double() - expected[name]).norm() / expected[name].norm()
        assert distance < tolerance, (name, float(distance))
    for name in ("normalizers", "deltas"):
        assert ours[name].dtype == torch.float32
        torch.testing.assert_close(ours[name].double(), expected[name], rtol=tolerance, atol=10 * tolerance)
    if mask is not None:
        blind = ~mask.any(dim=-1).expand(tensors[0].shape[:-1])
        for name in ("output", "d_query", "g_query", "g_gradient"):
            assert not ours[name][blind].any(), name


@pytest.mark.parametrize("mask", ["none", "causal", "padded", "scattered"])
@pytest.mark.parametrize(
    "shape", [(2, 2, 37, 70, 16), (2, 1, 70, 37, 24), (3, 1, 33, 33, 80)], ids=lambda shape: "x".join(map(str, shape))
)
def test_both_derivatives_are_those_of_attention_written_out(shape, mask):
    check(draw(shape, torch.float32), masked(mask, shape[0], *shape[2:4]), tolerance=1e-5)


def test_half_precision_is_the_same_up_to_rounding():
    check(draw((2, 1, 70, 133, 24), torch.float16), masked("padded", 2, 70, 133), tolerance=2e-3)


def test_blocks_that_nothing_sees_are_not_read():
    tensors = draw((1, 1, 70, 192, 16), torch.float32)
    mask = torch.zeros(1, 1, 70, 192, dtype=torch.bool, device=DEVICE)
    mask[..., 64:128] = True
    expected = kernels(tensors, mask)
    for number in (1, 2, 5, 6):
        tensors[number][:, :, :64] = torch.nan
        tensors[number][:, :, 128:] = torch.nan
    for name, found in kernels(tensors, mask).items():
        assert torch.equal(found, expected[name]), name


def test_without_queries_or_keys_there_is_nothing_to_sum():
    for queries, keys in ((0, 5), (5, 0)):
        for mask in (None, torch.ones(1, 1, queries, keys, dtype=torch.bool, device=DEVICE)):
            for name, found in kernels(draw((1, 1, queries, keys, 16), torch.float32), mask).items():
                assert name == "normalizers" or not found.any(), name


class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
    @pytest.mark.parametrize(
        "queries, keys, head, mask",
        [
            *((681, 681, head, "padded") for head in (16, 64, 80, 128)),
            (1032, 1032, 64, "causal"),
            (300, 1032, 64, "none"),
            (1032, 300, 128, "scattered"),
        ],
    )
    def test_long_texts(self, queries, keys, head, mask, dtype, tolerance):
        check(draw((2, 3, queries, keys, head), dtype), masked(mask, 2, queries, keys), tolerance)

    @pytest.mark.parametrize("head", [64, 128])
    def test_float32_follows_pytorch_s_precision_of_products(self, head):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            check(draw((2, 3, 300, 681, head), torch.float32), masked("padded", 2, 300, 681), tolerance=2e-2)
        finally:
            torch.set_float32_matmul_precision(before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_two_runs_give_the_same_bits(self, dtype):
        tensors, mask = draw((2, 3, 681, 681, 64), dtype), masked("padded", 2, 681, 681)
        expected = kernels(tensors, mask)
        for name, found in kernels(tensors, mask).items():
            assert torch.equal(found, expected[name]), name

    def test_a_cuda_graph_replays_them(self):
        tensors, mask = draw((2, 3, 300, 300, 64), torch.bfloat16), masked("padded", 2, 300, 300)
        kernels(tensors, mask)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = kernels(tensors, mask)
        for tensor in tensors:
            tensor.mul_(0.5)
        mask.logical_and_(masked("scattered", 2, 300, 300))
        graph.replay()
        for name, expected in kernels(tensors, mask).items():
            assert torch.equal(found[name], expected), name
