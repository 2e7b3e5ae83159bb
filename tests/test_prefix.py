"""A prefix is one of two things."""

import pytest
import torch

from gradmem_bench.prefix import Prefix


def test_a_prefix_is_embeddings_or_a_cache():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="either"):
        Prefix(mask)
    with pytest.raises(ValueError, match="either"):
        Prefix(mask, embeddings=torch.zeros(1, 2, 4), cache=())
