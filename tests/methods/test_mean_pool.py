"""Mean pooling against numbers worked by hand, and a plain loop."""

import torch
from methods.matrix import backbone, build, ids_of

from gradmem_bench.batch import Tokens


def test_segments_worked_by_hand():
    on = backbone("gpt2")
    method = build("mean_pool", on, memory_vectors=2)
    contexts = Tokens.from_lists([[9, 10, 11, 12, 13], [20, 21], [30]])
    memory = method.write(contexts).tensors["memory"]
    table = on.model.get_input_embeddings().weight

    def mean(*ids: int) -> torch.Tensor:
        return table[list(ids)].mean(dim=0)

    # Token i of T goes to segment 2 i // T; one token alone leaves the second segment empty.
    rows = [[mean(9, 10, 11), mean(12, 13)], [mean(20), mean(21)], [mean(30), torch.zeros(on.width)]]
    torch.testing.assert_close(memory, torch.stack([torch.stack(row) for row in rows]))


def test_as_many_vectors_as_tokens_are_the_tokens_themselves():
    on = backbone("llama")
    (ids,) = ids_of(on, 7)
    memory = build("mean_pool", on, memory_vectors=7).write(Tokens.from_lists([ids])).tensors["memory"]
    torch.testing.assert_close(memory[0], on.embed(torch.tensor(ids)))


def test_memory_stays_in_float32_where_the_computation_does_not():
    on = backbone("neox")
    contexts = Tokens.from_lists(ids_of(on, 19))
    method = build("mean_pool", on)
    plain = method.write(contexts).tensors["memory"]
    with torch.autocast("cpu", torch.bfloat16):
        lower = method.write(contexts).tensors["memory"]
    torch.testing.assert_close(lower, plain)
