"""The recurrence of RWKV-7.

For one head, with the state S [value, key] and the decay w_t = exp(log_w_t) over the key index:

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_tᵀ + v_t k_tᵀ
    y_t = S_t r_t

B batch, T tokens, H heads, C chunks, L tokens in a chunk, N head size.
"""

import torch
from torch import Tensor

from rwkvkit.ops import chunks, inputs
from rwkvkit.ops.inputs import Impl, Needs

CHUNK = 32  # the fastest of 16, 32 and 64, forward and backward on a CPU
KERNELS = {64: Needs(72480, 33296, turing=56352), 128: Needs(139040, 66576)}  # by head size


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    origin: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the RWKV-7 recurrence over T tokens; differentiable in every floating input.

    Computed in float32, in float64 if an input is, whatever autocast says.

    Args:
        r: receptance [B, T, H, N].
        log_w: logarithm of the decay [B, T, H, N], in [-e^-½, 0] as RWKV-7 makes it. The loop
            takes any value <= 0; the chunked form overflows in float32 below about -2.7.
        k: key [B, T, H, N].
        v: value [B, T, H, N].
        a: what is read from the state to be replaced [B, T, H, N]; the model's -kk.
        b: where it is written back [B, T, H, N]; the model's kk · (in-context learning rate).
        state: S [B, H, N, N] as [value, key] before the first token; None: ``origin``.
        resets: bool [B, T], True at a token before which the state becomes ``origin``.
        origin: the state of a document's start [H, N, N], [value, key]; None: zero.
        impl: ``naive`` (a loop over tokens), ``chunked`` (PyTorch products), ``cuda`` (kernels on
            tensor cores: inputs are rounded to v's bf16 or fp16, the state is fp32), ``precise``
            (fp32 kernels; on a CPU a loop with its own backward pass), or ``auto``; see
            ``ops.inputs.choose``.

    Returns:
        y [B, T, H, N] in v's dtype, and the state [B, H, N, N] after the last token in the
        precision of the computation.

    Raises:
        UsageError: shapes do not fit together, or ``impl`` is unknown or cannot run on them.
        SetupError: the kernels cannot be compiled.
    """
    batch, tokens, heads, size = r.shape
    vectors = {"r": r, "log_w": log_w, "k": k, "v": v, "a": a, "b": b}
    optional = {"state": state, "resets": resets, "origin": origin}
    inputs.check(
        {**vectors, **{n: x for n, x in optional.items() if x is not None}},
        {
            **dict.fromkeys(vectors, (batch, tokens, heads, size)),
            "state": (batch, heads, size, size),
            "resets": (batch, tokens),
            "origin": (heads, size, size),
        },
    )
    dtype = inputs.compute_dtype(*vectors.values(), state, origin)
    choice = inputs.choose(impl, r.device, v.dtype, tokens, KERNELS.get(size))
    if choice.impl in ("cuda", "precise"):
        return _kernels(tuple(vectors.values()), state, resets, origin, choice.impl, dtype)
    run = _naive if choice.impl == "naive" else _chunked
    with inputs.no_autocast(r.device):
        y, final = run(
            r.to(dtype),
            log_w.to(dtype),
            k.to(dtype),
            v.to(dtype),
            a.to(dtype),
            b.to(dtype),
            inputs.first_state(state, origin, r, dtype),
            resets,
            None if origin is None else origin.to(dtype),
        )
    return y.to(v.dtype), final


def _kernels(
    vectors: tuple[Tensor, ...],
    state: Tensor | None,
    resets: Tensor | None,
    origin: Tensor | None,
    impl: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Hand over to the registered operator, in its types."""
    from rwkvkit.ops.cuda.wkv7 import wkv7 as run

    out = vectors[3].dtype
    if vectors[3].is_cuda:
        dtype = torch.float32
    wanted = dtype if impl == "precise" else out
    if state is None and origin is not None:
        state = inputs.first_state(None, origin, vectors[0], dtype)
    with inputs.no_autocast(vectors[0].device):
        y, final = run(
            tuple(x.to(wanted) for x in vectors),
            None if state is None else state.to(dtype),
            None if origin is None or resets is None else origin.to(dtype),
            resets,
            precise=impl == "precise",
        )
    return y.to(out), final


def _naive(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    resets: Tensor | None,
    origin: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step a token, as the formulas read. ``unbind``: indexing x[:, t] is O(T²) backward."""
    start = torch.zeros_like(state[:1]) if origin is None else origin
    fresh = None if resets is None else resets[:, :, None, None, None].unbind(1)
    y = []
    steps = zip(*(x.unbind(1) for x in (r, log_w.exp(), k, v, a, b)), strict=True)
    for t, (r_t, w_t, k_t, v_t, a_t, b_t) in enumerate(steps):
        if fresh is not None:
            state = torch.where(fresh[t], start, state)
        read = state @ a_t[..., None]
        state = state * w_t[..., None, :] + read * b_t[..., None, :]
        state = state + v_t[..., :, None] * k_t[..., None, :]
        y.append((state @ r_t[..., None]).squeeze(-1))
    return torch.stack(y, 1), state


def _chunked(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    resets: Tensor | None,
    origin: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Matrix products inside chunks, a loop over the chunks' states only.

    Let u_t = S_{t-1} a_t, what token t reads to replace. Inside a chunk it depends on the state
    S0 that enters, on the keys and on earlier u:

        U = A_ab U + A_ak V + Ā S0ᵀ,  hence  U = W S0ᵀ + U0
        with  (I - A_ab) [W, U0] = [Ā, A_ak V], a triangular system.

    Exponents are centred on the chunk's middle: with log_w >= -e^-½ and L = 32 they stay under 10
    in the half that is kept, under 20 in the half that is masked away.
    """
    tokens, size = r.shape[1], r.shape[-1]
    length = min(CHUNK, tokens)
    r, log_w, k, v, a, b = (chunks.split(x, length) for x in (r, log_w, k, v, a, b))

    upto = log_w.cumsum(-2)
    before = upto - log_w
    total = upto[..., -1:, :]
    middle = upto[..., (length - 1) // 2, None, :]
    rows = torch.cat([r * (upto - middle).exp(), a * (before - middle).exp()], -2)
    columns = torch.cat([k, b], -2) * (middle - upto).exp().repeat(1, 1, 1, 2, 1)
    kept = torch.ones(length, length, dtype=r.dtype, device=r.device).tril()
    kept = torch.cat([kept, kept.tril(-1)])
    reads_r, reads_a = r * upto.exp(), a * before.exp()
    after = (total - upto).exp()
    writes_k, writes_b = k * after, b * after
    keeps = total.exp()
    if resets is not None:
        parts = chunks.Segments.of(resets, length, r.dtype)
        kept = kept * parts.same.repeat(1, 1, 1, 2, 1)
        reads_r, reads_a = reads_r * parts.first, reads_a * parts.first
        writes_k, writes_b = writes_k * parts.last, writes_b * parts.last
        keeps = keeps * parts.whole

    scores = (rows @ columns.mT).unflatten(-1, (2, length)) * kept[..., None, :]
    (a_qk, a_ak), (a_qb, a_ab) = (x.split(length, -2) for x in scores.unbind(-2))
    read_v = a_ak @ v
    y = a_qk @ v
    if resets is not None and origin is not None:
        since = parts.log_decay_before(log_w)
        start = origin[:, None]
        read_v = read_v + (a * since.exp() * (1 - parts.first)) @ start.mT
        y = y + (r * (since + log_w).exp() * (1 - parts.first)) @ start.mT

    identity = torch.eye(length, dtype=r.dtype, device=r.device)
    solved = torch.linalg.solve_triangular(
        identity - a_ab, torch.cat([reads_a, read_v], -1), upper=False, unitriangular=True
    )
    w, u0 = solved.split(size, -1)
    reads_r = reads_r + a_qb @ w
    y = y + a_qb @ u0
    added = v.mT @ writes_k + u0.mT @ writes_b
    if resets is not None and origin is not None:
        added = added + (since + log_w)[..., -1:, :].exp() * start * (1 - parts.whole)

    entering = []
    steps = zip(*(x.unbind(2) for x in (keeps, added, w.mT, writes_b)), strict=True)
    for keep, add, w_c, b_c in steps:
        entering.append(state)
        state = torch.addcmul(add, keep, state) + (state @ w_c) @ b_c
    y = y + reads_r @ torch.stack(entering, 2).mT
    return chunks.join(y, tokens), state
