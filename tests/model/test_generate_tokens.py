import itertools

import pytest
import torch
from rwkv_cases import ARCHS, small_model

from rwkvkit import WorldTokenizer
from rwkvkit.errors import UsageError
from rwkvkit.model import generate
from rwkvkit.model.generate import generate_tokens

PROMPT = [3, 14, 15, 9, 2, 6]


@pytest.mark.parametrize("arch", ARCHS)
def test_greedy_takes_the_largest_logit(arch):
    model = small_model(arch)
    got = list(generate_tokens(model, PROMPT, max_tokens=8, temperature=0, stop=()))
    text = list(PROMPT)
    for _ in range(8):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    assert got == text[len(PROMPT) :]


def test_the_last_token_is_not_read():
    model, lengths = small_model("x070"), []
    model.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    assert len(list(generate_tokens(model, PROMPT, max_tokens=3, stop=()))) == 3
    assert lengths == [len(PROMPT), 1, 1]


def test_the_seed_decides():
    model = small_model("x070")
    one, again, other = (
        list(generate_tokens(model, PROMPT, max_tokens=20, top_p=1.0, seed=seed, stop=()))
        for seed in (1, 1, 2)
    )
    assert len(one) == 20
    assert one == again
    assert one != other


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
    model = small_model("x070")
    want = list(generate_tokens(model, PROMPT, max_tokens=5, stop=()))
    monkeypatch.setattr(generate, "_PROMPT_PIECE", 4)
    assert list(generate_tokens(model, PROMPT, max_tokens=5, stop=())) == want


def test_a_small_top_p_or_temperature_is_greedy():
    model = small_model("x060")
    greedy = list(generate_tokens(model, PROMPT, max_tokens=9, temperature=0, stop=()))
    for settings in ({"top_p": 1e-6}, {"temperature": 1e-40}, {"temperature": 1e-46}):
        assert list(generate_tokens(model, PROMPT, max_tokens=9, stop=(), **settings)) == greedy


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([0.1, 0.5, 0.05, 0.35]).log()
    drawn = {
        generate._draw(logits, 1.0, 0.8, torch.Generator().manual_seed(seed)) for seed in range(60)
    }
    assert drawn == {1, 3}


def test_stops_without_yielding_the_stop_token():
    model = small_model("x052")
    text = list(generate_tokens(model, PROMPT, max_tokens=10, temperature=0, stop=()))
    stop = text[4]
    got = list(generate_tokens(model, PROMPT, max_tokens=10, temperature=0, stop=(stop,)))
    assert got == text[: text.index(stop)]


def test_a_token_is_one_step_and_the_last_needs_none():
    model = small_model("x070")
    widths = []
    model.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))
    assert len(list(generate_tokens(model, PROMPT, max_tokens=4, stop=()))) == 4
    assert widths == [len(PROMPT), 1, 1, 1]


def test_text_to_text():
    model = small_model("x070", vocab_size=257)
    tokenizer = WorldTokenizer()  # of which a model of 257 tokens knows the single bytes
    ids = [byte + 1 for byte in b"\x01!"]
    assert tokenizer.encode("\x01!").tolist() == ids
    want = "".join(generate.generate(model, "\x01!", max_tokens=40, top_p=1.0, seed=4))
    tokens = generate_tokens(model, ids, max_tokens=40, top_p=1.0, seed=4)
    assert want == tokenizer.decode(list(tokens))
    assert len(want) > 20
    stop = want[9:11]
    cut = generate.generate(model, "\x01!", max_tokens=40, top_p=1.0, seed=4, stop=[stop])
    assert want.startswith("".join(cut) + stop)


@pytest.mark.parametrize(
    ("prompt", "settings", "hint"),
    [
        ("", {}, "the prompt is empty"),
        ("日本", {}, "with --vocab"),
        ("!", {"stop": [""]}, "stop: a text that ends the output is empty"),
    ],
)
def test_texts_that_cannot_be_generated(prompt, settings, hint):
    model = small_model("x070", vocab_size=257)
    with pytest.raises(UsageError, match=hint):
        list(generate.generate(model, prompt, **settings))


def test_streams_and_puts_the_model_back_into_training_mode():
    model = small_model("x052", dropout=0.5)
    stream = generate_tokens(model, PROMPT, max_tokens=10**9, stop=())
    assert len(list(itertools.islice(stream, 3))) == 3
    stream.close()
    assert model.training
    logits = model(torch.tensor([PROMPT]))
    assert logits.requires_grad
    assert not logits.is_inference()


@pytest.mark.parametrize(
    ("prompt", "settings", "hint"),
    [
        ([], {}, r"\[0\] starts a new document"),
        ([50], {}, "made for another vocabulary"),
        ([-1], {}, "made for another vocabulary"),
        (PROMPT, {"temperature": -1}, "-1 is not in"),
        (PROMPT, {"top_p": 0}, "0 is not in"),
    ],
)
def test_what_cannot_be_generated(prompt, settings, hint):
    with pytest.raises(UsageError, match=hint):
        list(generate_tokens(small_model("x070"), prompt, max_tokens=1, **settings))
