"""Lines of jsonl as they come in the wild, and a strict reader in plain Python."""

import json

from hypothesis import strategies as st

values = st.one_of(st.text(max_size=12), st.none(), st.integers(), st.lists(st.integers()))
good_lines = st.builds(
    lambda text, more, ascii_only, pad: (
        pad
        + json.dumps({**more, "text": text}, ensure_ascii=ascii_only).encode(
            "utf-8", "surrogatepass"
        )
        + pad
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.dictionaries(st.sampled_from(["a", "text", "meta"]), values, max_size=2),
    st.booleans(),
    st.sampled_from([b"", b" ", b"\t", "\u3000".encode(), b"\x0c", b"\r"]),
)
odd_lines = st.sampled_from(
    [
        b"",
        b"   ",
        "\u2003\u00a0".encode(),
        b"\x1c\x1d",
        b'{"text": "nul \\u0000 escape"}',
        b'{"text": 1, "text": "the last of two wins"}',
        b'{"text": "one"}\r{"text": "two after a lone carriage return"}',
        b'{"text": "with NaN", "x": NaN, "y": -Infinity}',
        '{"text": "line\u2028separator \u0085"}'.encode(),
        b'{"text": "pair \\ud83d\\ude00"}',
        b'{"text": "big", "n": 123456789012345678901234567890, "f": 1e999}',
    ]
)
bad_lines = st.sampled_from(
    [
        b'{"text": "one"} {"text": "two"}',
        b'{"text": "unfinished',
        b'{"text": "raw \x00 nul"}',
        b'{"text": "invalid \xff utf-8"}',
        b'{"text": "cut off \xe4\xb8"}',
        b'{"text": "lone \\ud800 surrogate"}',
        b'\xef\xbb\xbf{"text": "byte order mark"}',
        b'{"body": "no text"}',
        b'{"text": null}',
        b'{"text": 5}',
        b'["text"]',
        b'"text"',
        b"null",
        b"\xff",
        b"[" * 5000,
    ]
)
endings = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])
some_lines = st.one_of(good_lines, good_lines, odd_lines, bad_lines)
contents = st.tuples(
    st.lists(st.tuples(some_lines, endings), max_size=12), st.one_of(st.just(b""), good_lines)
).map(lambda made: b"".join(line + end for line, end in made[0]) + made[1])


def strict(content: bytes) -> tuple[list[str], list[int]]:
    """Return the documents and the numbers of the bad lines, one line after another."""
    texts, bad = [], []
    # Undecodable bytes become surrogates, which a strict document cannot hold either.
    lines = content.decode("utf-8", "surrogateescape")
    lines = lines.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            line.encode()
            if line.strip():
                text = json.loads(line.strip())["text"]
                text.encode()
                texts.append(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            bad.append(number)
    return texts, bad
