"""Tables: parquet files, Arrow files, and datasets by name; a row is what a jsonl line is.

The reading side takes only the columns that the source needs and hands them on as Arrow streams of
about a chunk each. The position of a document is the number of its row, from 0.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from rwkvkit.data.chat import ChatForm
from rwkvkit.data.chunks import Chunk, opened
from rwkvkit.data.documents import Documents, Reject
from rwkvkit.data.forms import BadLine, Column, listed
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.sources import DatasetName
from rwkvkit.errors import DataError, RwkvkitError, SetupError, UnreachableError

_READ = 1 << 20
_ROWS = 1000  # of a dataset by name, asked for at a time
_ARROW_FILE = b"ARROW1"  # begins the file format; what begins otherwise is the stream format


def chunks(
    number: int,
    file: InputFile,
    chunk_bytes: int,
    sha256: dict[int, str],
    span: tuple[int, int] | None = None,
) -> Iterator[Chunk]:
    """Cut a table between rows; see ``file_chunks``."""
    if file.dataset is not None:
        yield from _dataset_chunks(number, file, file.dataset, chunk_bytes, sha256)
        return
    digest = hashlib.sha256()
    with opened(file) as raw, _readable(file):
        while span is None and (block := raw.read(_READ)):
            digest.update(block)
        raw.seek(0)
        row = 0
        if file.format == "parquet":
            row, batches = _parquet_batches(raw, file, chunk_bytes, span)
        else:
            batches = _arrow_batches(raw, file)
        yield from _batch_chunks(number, file, _sliced(batches, chunk_bytes), raw, row, span)
    if span is None:
        sha256[number] = digest.hexdigest()


def documents(chunk: Chunk, skip_bad: bool) -> Documents:
    """Return a document a row."""
    import pyarrow as pa

    assert chunk.data is not None
    table = pa.ipc.open_stream(chunk.data).read_all()
    form = chunk.files[0].form
    found = Documents(n_lines=table.num_rows, marks=[] if isinstance(form, ChatForm) else None)
    whole = _whole_column(table, form.name) if isinstance(form, Column) else None
    skipped: list[int] = []
    if whole is not None:
        found.texts = whole
    else:
        for row, record in enumerate(_records(table)):
            try:
                if isinstance(record, BadLine):
                    raise record
                found.add(form.render(record))
            except BadLine as bad:
                raw = "" if isinstance(record, BadLine) else _shown(record)
                reject = Reject(chunk.first_file, row + 1, bad.reason, bad.hint, raw)
                found.rejects.append(reject)
                if not skip_bad:
                    return Documents(rejects=found.rejects)
                skipped.append(row)
    found.offsets = chunk.start + np.delete(np.arange(table.num_rows), skipped)
    found.files = np.full(len(found.texts), chunk.first_file)
    return found


def _whole_column(table: Any, name: str) -> list[bytes] | None:
    """Return a column as UTF-8, or None if not every row of it is a valid string."""
    import pyarrow as pa

    column = table.column(name)
    if column.null_count or not (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        return None
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return None
    texts: list[bytes] = column.cast(pa.large_binary()).to_pylist()
    return texts


def _records(table: Any) -> Iterable[dict[str, Any] | BadLine]:
    """Return the rows; where one is not UTF-8, what is wrong with it."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except UnicodeDecodeError:
        return (_record(table.slice(i, 1)) for i in range(table.num_rows))
    return rows


def _record(row: Any) -> dict[str, Any] | BadLine:
    try:
        [record] = row.to_pylist()
    except UnicodeDecodeError as error:
        return BadLine(
            f"invalid UTF-8: {error.reason}, byte 0x{error.object[error.start]:02x}",
            "convert the column to UTF-8",
        )
    return dict(record)


def _shown(record: dict[str, Any]) -> str:
    return orjson.dumps(record, default=repr).decode()


def _parquet_batches(
    raw: BinaryIO, file: InputFile, chunk_bytes: int, span: tuple[int, int] | None
) -> tuple[int, Iterator[Any]]:
    """Return the number of the first row of a span, and its rows."""
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(raw)
    _check_columns(file, parquet.schema_arrow.names)
    metas = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    start, stop = span or (0, file.size)
    first, after = np.searchsorted(_places(metas, file.size), [start, stop])

    def batches() -> Iterator[Any]:
        for group in range(first, after):
            meta = metas[group]
            rows = max(1, meta.num_rows * chunk_bytes // max(meta.total_byte_size, 1))
            columns = list(file.form.columns)
            yield from parquet.iter_batches(rows, row_groups=[group], columns=columns)

    return sum(meta.num_rows for meta in metas[:first]), batches()


def _places(groups: list[Any], size: int) -> NDArray[np.int64]:
    """Return about where in a file of ``size`` bytes each of its groups of rows starts.

    By their sizes: to ask for the offset of a column ends the process where a damaged file lies
    about that column (pyarrow 26). Whatever it says, each group is in one span, in their order.
    """
    sizes = np.array([max(group.total_byte_size, 1) for group in groups], np.float64)
    stops = np.cumsum(sizes)
    shares = np.concatenate([[0.0], stops[:-1]])[: len(sizes)] / stops[-1:]
    return np.minimum(size * shares, size - 1).astype(np.int64)


def _arrow_batches(raw: BinaryIO, file: InputFile) -> Iterator[Any]:
    import pyarrow as pa

    start = raw.read(len(_ARROW_FILE))
    raw.seek(0)
    if start == _ARROW_FILE:
        reader = pa.ipc.open_file(raw)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        reader = pa.ipc.open_stream(raw)
        batches = iter(reader)
    _check_columns(file, reader.schema.names)
    return (batch.select(list(file.form.columns)) for batch in batches)


def _sliced(batches: Iterable[Any], chunk_bytes: int) -> Iterator[Any]:
    """Cut batches that are much larger than a chunk."""
    for batch in batches:
        n_bytes = sum(map(_spelt_out_bytes, batch.columns))
        rows = max(1, batch.num_rows * chunk_bytes // max(n_bytes, 1))
        for start in range(0, batch.num_rows, rows):
            yield _plain(batch.slice(start, rows))


def _spelt_out_bytes(column: Any) -> int:
    """Return about how many bytes a column has where each row holds its own text."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return int(column.dictionary.nbytes) * len(column) // max(len(column.dictionary), 1)


def _plain(batch: Any) -> Any:
    """Replace views and dictionaries: however short, they carry all that the whole batch has."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        kind = _plain_type(column.type)
        columns.append(column if kind == column.type else column.cast(kind))
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _plain_type(kind: Any) -> Any:
    """Return a type for the same values without views and dictionaries, at any depth."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    return kind


def _batch_chunks(
    number: int,
    file: InputFile,
    batches: Iterable[Any],
    raw: BinaryIO | None = None,
    row: int = 0,
    span: tuple[int, int] | None = None,
) -> Iterator[Chunk]:
    """Make chunks of batches; how far ``raw`` was read tells the progress."""
    told, end = span or (0, file.size)
    held: Chunk | None = None
    for batch in batches:
        if held is not None:
            at = min(max(told, raw.tell() if raw and not raw.closed else 0), end)
            yield replace(held, input_bytes=at - told)
            told = at
        stop = row + batch.num_rows
        held = Chunk(number, (file,), row, stop, _packed(batch), input_bytes=0)
        row = stop
    if held is not None:
        yield replace(held, input_bytes=end - told)


def _packed(batch: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _check_columns(file: InputFile, names: list[str]) -> None:
    for column in file.form.columns:
        if column not in names:
            raise DataError(
                f"no column {column!r}",
                where=file.name,
                hint=f"the table has {listed(names)}: say in the source which one holds the text",
            )
        if names.count(column) > 1:
            raise DataError(
                f"{names.count(column)} columns {column!r}",
                where=file.name,
                hint="write the table again with one column of that name",
            )


def _dataset_chunks(
    number: int,
    file: InputFile,
    dataset: DatasetName,
    chunk_bytes: int,
    sha256: dict[int, str],
) -> Iterator[Chunk]:
    """Stream a dataset by name; its digest is that of its rows, column by column."""
    digest = hashlib.sha256()

    def seen(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            for record in batch.to_pylist():
                digest.update(_shown(record).encode() + b"\n")
            yield batch

    with _readable(file):
        rows = load_rows(dataset)
        if rows.column_names is not None:
            _check_columns(file, list(rows.column_names))
        tables = rows.select_columns(list(file.form.columns)).with_format("arrow").iter(_ROWS)
        batches = (batch for table in tables for batch in table.to_batches())
        yield from _batch_chunks(number, file, _sliced(seen(batches), chunk_bytes))
    sha256[number] = digest.hexdigest()


def load_rows(dataset: DatasetName) -> Any:
    """Return the rows of a dataset by name, as the package ``datasets`` streams them."""
    import datasets

    return datasets.load_dataset(
        dataset.name,
        dataset.subset,
        split=dataset.split,
        revision=dataset.revision,
        streaming=True,
    )


@contextmanager
def _readable(file: InputFile) -> Iterator[None]:
    """Turn whatever a package raises about a table into an error that names it."""
    try:
        yield
    except RwkvkitError:
        raise
    except ImportError as error:
        raise SetupError(
            f"the package {error.name!r} is needed to read this",
            where=file.name,
            hint=f"pip install {error.name}",
        ) from error
    except Exception as error:
        words = " ".join(str(error).split())
        hint = "check that it is what the recipe says, whole, and within reach"
        if file.dataset and isinstance(error, ConnectionError):
            hint = (
                "check the connection to huggingface.co; with HF_HUB_OFFLINE=1 the dataset comes "
                "from the cache, if `datasets` has loaded it before"
            )
        # Damage looks like a bad connection here, but costs little if taken for one.
        raise UnreachableError(
            f"cannot be read: {type(error).__name__}: {words}", where=file.name, hint=hint
        ) from error
