"""The card of a dataset."""

from pathlib import Path

from rwkvkit import WorldTokenizer
from rwkvkit.data.card import card_path, write_card


def test_it_names_a_hundred_inputs_and_counts_the_rest(build, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(103):
        (folder / f"{number}.txt").write_text("a" * (number + 1))
    made = build({"path": f"{folder}/*.txt", "format": "text"})
    made.run()
    write_card(made.prefix, WorldTokenizer())
    card = card_path(made.prefix).read_text()
    assert sum(".txt | " in line for line in card.splitlines()) == 100
    assert f"| 3 more, all in the manifest | {101 + 102 + 103} | |" in card
    assert "99.txt" in card
    assert "100.txt" not in card
