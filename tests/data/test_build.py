import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from output_cases import decoded, digests

from rwkvkit import WorldTokenizer
from rwkvkit.data.manifest import read_manifest

TOKENIZER = WorldTokenizer()


@pytest.mark.parametrize(("name", "epochs"), [("docs-x1", 1), ("docs-x3", 3)])
@pytest.mark.parametrize("chunk_bytes", [1, 100, None])
def test_golden_bytes(build, golden, tmp_path, name, epochs, chunk_bytes):
    made = build(
        str(golden / "docs.jsonl"),
        repeat={"epochs": epochs, "shuffle": False},
        plan=True,
        chunk_bytes=chunk_bytes,
    ).run()
    for suffix in (".bin", ".idx"):
        written = (tmp_path / "out" / f"data{suffix}").read_bytes()
        assert written == (golden / f"{name}{suffix}").read_bytes()
    printed = json.loads((golden / "meta.json").read_text())["make_data"][name]["stdout"]
    assert made.plan.flags == printed[-1]


def test_leaving_repeat_shuffle_out_is_the_natural_order_once(build, golden, tmp_path):
    made = build(str(golden / "docs.jsonl")).run()
    assert (tmp_path / "out" / "data.bin").read_bytes() == (golden / "docs-x1.bin").read_bytes()
    assert made.plan is None
    assert made.seed is None
    assert made.ctx_len is None


def test_a_shuffled_repeat_3_holds_each_document_once_a_pass(build, jsonl, tmp_path):
    documents = [f"document {i}" for i in range(500)]
    build(jsonl("a.jsonl", documents), repeat={"epochs": 3}).run()
    written = decoded(tmp_path / "out" / "data")
    each = [written[i : i + 500] for i in range(0, 1500, 500)]
    assert len(written) == 1500
    for one in each:
        assert sorted(one) == sorted(documents)
        assert one != documents
    for one, other in itertools.combinations(each, 2):
        assert one != other


def test_a_source_stands_as_often_as_it_says(build, jsonl, tmp_path):
    first = jsonl("a.jsonl", ["a1", "a2"])
    second = jsonl("b.jsonl", ["b1", "b2", "b3"], field="body")
    sources = [{"path": first, "repeat": 4}, {"path": second, "field": "body"}]
    made = build(sources, repeat={"epochs": 2, "shuffle": False}).run()
    one_pass = ["a1", "a2"] * 4 + ["b1", "b2", "b3"]
    assert decoded(tmp_path / "out" / "data") == one_pass * 2
    assert (made.documents_in, made.documents) == (5, 22)

    build(sources, repeat={"epochs": 2}).run()
    written = decoded(tmp_path / "out" / "data")
    assert Counter(written[:11]) == Counter(written[11:]) == Counter(one_pass)
    assert written[:11] not in (one_pass, written[11:])


def corpus(jsonl) -> list[str]:
    return [
        jsonl(f"part-{n}.jsonl", [f"{n}-{i} " + "word " * (i * 7 % 50) for i in range(150)])
        for n in (1, 2, 10)
    ]


@pytest.mark.parametrize("workers", [2, 5])
def test_the_same_bytes_for_any_number_of_workers(build, jsonl, tmp_path, workers):
    corpus(jsonl)
    read = [{"path": str(tmp_path / "*.jsonl"), "repeat": 2}, {"builtin": "python-stdlib"}]
    made = [
        build(
            read,
            prefix=tmp_path / str(count) / "data",
            repeat={"epochs": 2},
            plan=True,
            chunk_bytes=500_000 if count > 1 else None,
        ).run(workers=count)
        for count in (1, workers)
    ]
    assert made[0] == made[1]
    assert digests(tmp_path / "1") == digests(tmp_path / str(workers))


@pytest.mark.parametrize("chunk_bytes", [1, 37, 1000, 10_000])
def test_the_same_bytes_for_any_size_of_chunks(build, jsonl, tmp_path, chunk_bytes):
    corpus(jsonl)
    for name, size in (("default", None), ("other", chunk_bytes)):
        build(
            str(tmp_path / "part-*.jsonl"),
            prefix=tmp_path / name / "data",
            repeat={"epochs": 2},
            chunk_bytes=size,
        ).run()
    assert digests(tmp_path / "default") == digests(tmp_path / "other")


def test_the_same_bytes_wherever_the_files_lie(build, jsonl, tmp_path, monkeypatch):
    paths = corpus(jsonl)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in paths:
        (elsewhere / Path(path).name).write_bytes(Path(path).read_bytes())
    build(f"{tmp_path}/*.jsonl", prefix=tmp_path / "one" / "d", repeat={}).run()
    monkeypatch.chdir(elsewhere)
    build("*.jsonl", prefix=tmp_path / "two" / "d", repeat={}).run()
    for suffix in (".bin", ".idx"):
        one = (tmp_path / "one" / f"d{suffix}").read_bytes()
        assert one == (tmp_path / "two" / f"d{suffix}").read_bytes()


def test_seeds_give_other_orders(build, jsonl, tmp_path):
    path = jsonl("a.jsonl", [f"document {i}" for i in range(50)])
    orders = []
    for seed, own in ((1, None), (2, None), (1, 2)):
        build(path, seed=seed, repeat={"seed": own}).run()
        orders.append(decoded(tmp_path / "out" / "data"))
    assert orders[0] != orders[1]
    assert orders[1] == orders[2]
    assert read_manifest(tmp_path / "out" / "data").seed == 2


def test_text_files_and_odd_documents(build, tmp_path):
    (tmp_path / "in").mkdir()
    contents = ["", "a\0b", "x" * 100_000, "🙂 中文\r\n"]
    for i, content in enumerate(contents):
        (tmp_path / "in" / f"{i}.txt").write_bytes(content.encode())
    build({"path": str(tmp_path / "in"), "format": "text"}, chunk_bytes=50).run()
    assert decoded(tmp_path / "out" / "data") == contents


def test_the_manifest_tells_everything_and_no_more(build, jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl("in/a.jsonl", ["Hello world"] * 40)
    (tmp_path / "in" / "b.jsonl").write_text('{"text": 5}\n')
    read = {"sources": [{"path": "in/*.jsonl"}], "on_error": "skip"}
    made = build(read, repeat={"epochs": 2}, plan=True, ctx_len=8).run()
    assert made == read_manifest(tmp_path / "out" / "data")
    stored = json.loads((tmp_path / "out" / "data.manifest.json").read_text())
    assert stored == made.model_dump(mode="json")
    assert str(tmp_path) not in json.dumps(stored)
    assert [file["path"] for file in stored["inputs"]] == ["in/a.jsonl", "in/b.jsonl"]
    for file in stored["inputs"]:
        content = (tmp_path / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (
            len(content), hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
    assert [file["path"] for file in stored["outputs"]] == [
        "data.bin", "data.idx", "data.rejects.jsonl",
    ]  # fmt: skip
    written = digests(tmp_path / "out")
    assert all(written[file["path"]] == file["sha256"] for file in stored["outputs"])
    assert stored["documents_in"] == 40
    assert stored["documents"] == 80
    assert stored["tokens"] == 240
    assert stored["rejected"] == 1
    assert stored["seed"] == 42
    assert stored["ctx_len"] == 8
    assert stored["plan"] == {
        "ctx_len": 8, "magic_prime": 29, "my_exit_tokens": 240, "warning": None,
    }  # fmt: skip
    assert stored["prepare"][1]["settings"]["vocabulary"] == TOKENIZER.fingerprint


def test_its_own_output_is_no_input(build, jsonl, tmp_path):
    jsonl("a.jsonl", ["a"])
    (tmp_path / "b.jsonl").write_text("bad\n")
    read = {"sources": [{"path": str(tmp_path)}], "on_error": "skip"}
    first = build(read, prefix=tmp_path / "all").run()
    again = build(read, prefix=tmp_path / "all")
    assert again.status().up_to_date
    assert again.run() == first


def test_the_prefix_may_carry_a_suffix(build, jsonl, tmp_path):
    made = build(jsonl("a.jsonl", ["a"]), prefix=tmp_path / "d.v1.bin")
    assert made.prefix == tmp_path / "d.v1"
    made.run()
    assert decoded(tmp_path / "d.v1") == ["a"]


@pytest.mark.parametrize("seldom", [0, 1000])
def test_progress_counts_up_to_the_whole(build, jsonl, seldom, monkeypatch):
    monkeypatch.setattr("rwkvkit.data.encoding._TELL_SECONDS", seldom)
    path = jsonl("a.jsonl", ["some words"] * 1000)
    seen = []
    made = build(path, repeat={"epochs": 2}, chunk_bytes=5000).run(progress=seen.append)
    encode = [p for p in seen if p.phase == "encode"]
    write = [p for p in seen if p.phase == "write"]
    assert [p.phase for p in seen] == ["encode"] * len(encode) + ["write"] * len(write)
    assert len(encode) > 3 if not seldom else len(encode) == 1  # one task
    for steps, documents, tokens in (
        (encode, 1000, made.tokens // 2),
        (write, 2000, made.tokens),
    ):
        done = [p.bytes_done for p in steps]
        assert done == sorted(done)
        assert steps[-1].bytes_done == steps[-1].bytes_total
        assert (steps[-1].documents, steps[-1].tokens) == (documents, tokens)
    assert encode[-1].bytes_total == Path(path).stat().st_size


def test_describe_touches_nothing(build, jsonl, tmp_path):
    jsonl("a-2.jsonl", ["x"])
    jsonl("a-10.jsonl", ["x"])
    before = sorted(tmp_path.rglob("*"))
    lines = build(
        {"path": f"{tmp_path}/a-*.jsonl", "repeat": 2}, repeat={"epochs": 3}, plan=True
    ).describe()
    assert lines[0] == f"read: {tmp_path}/a-*.jsonl x2"
    assert lines[2] == "repeat-shuffle: 3 passes, each in a fresh order"
    once = build(f"{tmp_path}/a-2.jsonl", repeat={"epochs": 1}).describe()
    assert once[2] == "repeat-shuffle: 1 pass, in a fresh order"
    assert lines[-1] == f"source {tmp_path}/a-*.jsonl: 2 files, 28 bytes, x6"
    assert sorted(tmp_path.rglob("*")) == before
