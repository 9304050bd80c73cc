"""Sample text from a model, one token at a time."""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from rwkvkit.errors import DivergedError, UsageError
from rwkvkit.model.rwkv import RWKV
from rwkvkit.tokenizer.text import Tokenizer, text_pieces, until
from rwkvkit.tokenizer.world import WorldTokenizer

_PROMPT_PIECE = 256  # tokens of a prompt read at once; bounds the logits held for them


def generate(
    model: RWKV,
    prompt: str,
    *,
    tokenizer: Tokenizer | None = None,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_p: float = 0.7,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the text that follows a prompt, in pieces of whole characters as they are drawn.

    ``"".join(generate(model, "def "))`` is the text. It ends with the document, before the first of
    ``stop`` in it, or after ``max_tokens``. The same arguments give the same text.

    Args:
        model: from :func:`~rwkvkit.load_model`, on any device; in evaluation mode while it runs.
        prompt: the text to continue, at least one token of it.
        tokenizer: of the model; that of the World models unless given.
        max_tokens: the most tokens to draw.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: draws from the fewest tokens whose probabilities sum to this, in (0, 1].
        seed: of the draw.
        stop: texts that end it, not empty; they are not yielded.

    Raises:
        DataError: the prompt holds a lone surrogate.
        DivergedError: the model gives logits that are not finite.
        SetupError: no ``tokenizer``, and the package ``rwkv`` is not installed.
        UsageError: an empty prompt or stop, a prompt with a token that the model does not know, a
            setting out of range, or a model with HeadQK.
    """
    if "" in stop:
        raise UsageError("a text that ends the output is empty", where="stop", hint="leave it out")
    tokenizer = tokenizer or WorldTokenizer()
    prompt_ids = tokenizer.encode(prompt).tolist()
    if prompt and not prompt_ids:
        raise UsageError(
            "the tokenizer leaves nothing of the prompt",
            where="prompt",
            hint="give another text, or the tokenizer of the model with --vocab (tokenizer= in "
            "Python)",
        )
    tokens = generate_tokens(
        model,
        prompt_ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=(tokenizer.end_id,),
    )
    return until(text_pieces(tokenizer, prompt_ids, tokens), stop)


@torch.no_grad()  # not inference_mode: what a training engine gathers here, it trains with later
def generate_tokens(
    model: RWKV,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 0.7,
    seed: int = 0,
    stop: Collection[int] = (0,),
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, each as soon as it is drawn.

    The prompt is read in GPT mode, the rest in RNN mode: time and memory a token do not grow. The
    model is in evaluation mode while it runs. The draw happens on the CPU: the same seed gives the
    same text wherever the logits are the same.

    Args:
        model: any but one with HeadQK.
        prompt_ids: token ids, at least one; ``[0]`` starts a document from nothing.
        max_tokens: the most tokens to yield.
        temperature: divides the logits; 0 always takes the largest.
        top_p: draws from the fewest tokens whose probabilities sum to this, in (0, 1].
        seed: of the draw.
        stop: ids that end the text; they are not yielded.

    Raises:
        DivergedError: the model gives logits that are not finite.
        UsageError: an empty prompt, an id outside the vocabulary, or a setting out of range.
    """
    _check(model, prompt_ids, temperature, top_p)
    generator = torch.Generator().manual_seed(seed)
    device = model.emb.weight.device
    training = model.training
    model.eval()
    try:
        state = model.zero_state(1)
        prompt = torch.tensor([prompt_ids], dtype=torch.int64, device=device)
        for piece in prompt.split(_PROMPT_PIECE, 1):
            logits, state = model(piece, state=state)
        for left in reversed(range(max_tokens)):
            token = _draw(logits[0, -1].float().cpu(), temperature, top_p, generator)
            if token in stop:
                return
            yield token
            if left:
                logits, state = model(torch.tensor([[token]], device=device), state=state)
    finally:
        model.train(training)


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if not logits.isfinite().all():
        raise DivergedError(
            "the model's logits are not finite",
            where="generate",
            hint="its weights are damaged or the training diverged: rwkvkit inspect shows them",
        )
    if temperature < torch.finfo(torch.float32).tiny:  # which the division would take for 0
        return int(logits.argmax())
    scaled = (logits - logits.max()) / temperature  # the largest stays finite for any temperature
    chances, tokens = torch.softmax(scaled, -1).sort(descending=True, stable=True)
    outside = chances.cumsum(-1) - chances >= top_p
    outside[0] = False
    chances = chances.masked_fill(outside, 0)
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])


def _check(model: RWKV, prompt_ids: Sequence[int], temperature: float, top_p: float) -> None:
    vocab = model.config.vocab_size
    if not len(prompt_ids):
        raise UsageError(
            "the prompt is empty",
            where="prompt",
            hint="give a text; as token ids, [0] starts a new document",
        )
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab:
        raise UsageError(
            f"the prompt has a token id outside 0..{vocab - 1}, which are all that the model knows",
            where="prompt",
            hint="it was made for another vocabulary: name the vocabulary file or tokenizer.json "
            "with --vocab (tokenizer= in Python)",
        )
    if not 0 <= temperature < math.inf:
        raise UsageError(
            f"{temperature} is not in [0, inf)",
            where="temperature",
            hint="0 always takes the likeliest token, 1 draws as the model says",
        )
    if not 0 < top_p <= 1:
        raise UsageError(
            f"{top_p} is not in (0, 1]", where="top_p", hint="1 draws from all tokens, 0.7 is usual"
        )
