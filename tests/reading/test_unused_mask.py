"""A mask that a batch holds and no layer is given is said; a key without a mask is not."""

import pytest
import torch

from lightning_leaky.reading.checks import unused_mask


@pytest.mark.parametrize("batch", [{"attention_mask": torch.ones(2, 3)}, [{"attention_mask": torch.ones(2, 3)}, 1]])
def test_an_unused_mask_is_said(batch):
    assert "The batch holds an `attention_mask`" in unused_mask(batch)


@pytest.mark.parametrize("batch", [{"attention_mask": None}, {"input_ids": torch.ones(2, 3)}, torch.ones(2), None])
def test_no_mask_is_no_unused_mask(batch):
    assert unused_mask(batch) is None
