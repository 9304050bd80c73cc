"""What a launch refuses before it asks for a GPU."""

import pytest
import torch

from rwkvkit.errors import UsageError
from rwkvkit.ops.cuda import elementwise_kernels


def test_a_tensor_between_two_borders_is_refused():
    part = torch.zeros(72, dtype=torch.bfloat16)[1:65]
    with pytest.raises(UsageError, match=r"shape \(64,\) does not begin .* 16 bytes") as refused:
        elementwise_kernels.relu_squared(part)
    assert refused.value.where == "relu_squared_forward"
