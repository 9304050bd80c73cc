from rwkvkit.data.forms import Column
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.tasks import make_tasks


def file(number: int, size: int, kind: str = "jsonl", source: int = 0) -> InputFile:
    return InputFile(
        path=f"{number}",
        name=f"{number}",
        source=source,
        number=number,
        size=size,
        format="text" if kind == "text" else "jsonl",
        compression="gzip" if kind == "gzip" else None,
        form=Column("text"),
        loss="all",
    )


def shape(inputs: list[InputFile], task_bytes: int | None) -> list[tuple[int, int, int, int]]:
    tasks = make_tasks(inputs, task_bytes)
    assert [task.number for task in tasks] == list(range(len(tasks)))
    assert sum(task.input_bytes for task in tasks) == sum(file.size for file in inputs)
    return [(task.first_file, len(task.files), task.start, task.stop) for task in tasks]


def test_a_large_file_is_cut_and_hashed_on_its_own():
    inputs = [file(0, 100), file(1, 250)]
    assert shape(inputs, 100) == [(0, 1, 0, 100), (1, 1, 0, 250), (1, 1, 0, 100),
                                  (1, 1, 100, 200), (1, 1, 200, 250)]  # fmt: skip
    tasks = make_tasks(inputs, 100)
    assert [task.hashes_only for task in tasks] == [False, True, False, False, False]
    assert [task.whole for task in tasks] == [True, True, False, False, False]
    assert [task.first_range for task in tasks[2:]] == [2, 2, 2]


def test_compressed_files_stay_whole():
    assert shape([file(0, 1000, "gzip")], 10) == [(0, 1, 0, 1000)]


def test_text_files_of_one_source_stand_together():
    kinds = [("text", 0), ("text", 0), ("text", 0), ("text", 1), ("jsonl", 1), ("text", 1)]
    inputs = [file(i, 6, kind, source) for i, (kind, source) in enumerate(kinds)]
    assert shape(inputs, 10) == [(0, 2, 0, 12), (2, 1, 0, 6), (3, 1, 0, 6), (4, 1, 0, 6),
                                 (5, 1, 0, 6)]  # fmt: skip
    assert len(shape([file(i, 1, "text") for i in range(5000)], None)) == 2


class Counted(int):
    """A size that counts how often it is added to something."""

    added = 0

    def __radd__(self, other: int) -> int:
        Counted.added += 1
        return int(other) + int(self)


def test_many_small_files_are_summed_once():
    make_tasks([file(i, Counted(1), "text") for i in range(500)])
    assert Counted.added <= 5 * 500


def test_empty_files_are_tasks_too():
    assert shape([file(0, 0), file(1, 0, "text")], 10) == [(0, 1, 0, 0), (1, 1, 0, 0)]


def test_a_huge_corpus_has_larger_tasks():
    small = make_tasks([file(0, 10 << 30)])
    large = make_tasks([file(i, 1 << 40) for i in range(3)])
    assert small[1].stop == 16 << 20
    assert len(large) < 4200
