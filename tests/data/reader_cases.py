"""What the tests of readers share: rows, and what a source of them gives."""

import numpy as np

from rwkvkit import WorldTokenizer, open_binidx
from rwkvkit.data.chunks import hash_file, task_chunks
from rwkvkit.data.finding import find_files
from rwkvkit.data.readers import read_file_chunk
from rwkvkit.data.sources import Source
from rwkvkit.data.tasks import make_tasks

DECODE = WorldTokenizer().decode
ROWS = [
    {"text": f"row {i} " + "x" * (i * 37 % 400), "n": i, "q": "why", "m": []} for i in range(300)
]


def read(chunk_bytes=1 << 20, **keys):
    """Return texts, positions and the numbers of the bad rows."""
    source = Source.model_validate(Source.expand(keys))
    inputs = find_files([source])
    hashed = {}
    texts, positions, bad, lines, n_bytes = [], [], [], 0, 0
    for chunk in (c for task in make_tasks(inputs) for c in task_chunks(task, chunk_bytes, hashed)):
        found = read_file_chunk(chunk, skip_bad=True)
        texts += [text.decode() for text in found.texts]
        positions += np.asarray(found.offsets).tolist()
        bad += [(lines + reject.line, reject.reason) for reject in found.rejects]
        lines += found.n_lines
        n_bytes += chunk.input_bytes
    assert n_bytes == sum(file.size for file in inputs)
    assert [hashed[i] for i in range(len(inputs))] == [hash_file(file) for file in inputs]
    return texts, positions, bad


def written(prefix):
    return [DECODE(tokens) for tokens in open_binidx(prefix)]
