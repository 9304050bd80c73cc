"""How much arithmetic a model needs."""

import math

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import weight_shapes

# Products and sums a state element a token: decay, k v, and reading it with r; x070 also
# multiplies the state with -kk and adds its outer product with kk a.
_WKV = {"x052": 6, "x060": 6, "x070": 9}
_NO_PRODUCT = ("emb.weight", ".r_k", ".time_faaaa", ".time_decay", ".time_state")


def train_flops(config: ModelConfig) -> float:
    """Return the floating-point operations of a forward and backward pass, for each token.

    Matrix products count two a weight and token, element-wise work nothing; the backward pass costs
    twice the forward pass (Kaplan et al. 2020, section 2.1). WKV counts as the recurrence. What
    checkpointing computes again does not count, so this is what model FLOPs utilisation asks for.

    Args:
        config: the model; every weight trains.
    """
    weights = sum(
        math.prod(shape)
        for name, shape in weight_shapes(config).items()
        if len(shape) > 1 and max(shape) < math.prod(shape) and not name.endswith(_NO_PRODUCT)
    )
    state = config.n_layer * config.n_embd * config.head_size
    return 3.0 * (2 * weights + _WKV[config.arch] * state)
