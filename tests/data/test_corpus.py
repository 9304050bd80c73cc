import tracemalloc
from types import SimpleNamespace

import numpy as np

from rwkvkit.data.chunk_work import EncodedChunk
from rwkvkit.data.corpus import Corpus
from rwkvkit.data.parts import PartWriter

N_PARTS, N_DOCUMENTS = 4, 50_000


def test_going_through_the_documents_keeps_nothing_of_them(tmp_path):
    """Whatever is kept for each document outgrows the memory that a build may take."""
    tasks, parts = [], []
    for number in range(N_PARTS):
        sizes = np.random.default_rng(number).integers(1, 4, N_DOCUMENTS).astype(np.int32)
        offsets = np.arange(N_DOCUMENTS)
        files = np.zeros(N_DOCUMENTS, np.uint32)
        chunk = EncodedChunk(files, offsets, sizes, np.zeros(sizes.sum(), np.uint16), [], 0)
        with PartWriter(tmp_path, number, hashed=True) as writer:
            writer.add(chunk)
            parts.append(writer.finish({}))
        tasks.append(SimpleNamespace(files=[SimpleNamespace(source=0)]))
    corpus = Corpus(tasks, parts, [SimpleNamespace(number=0)])
    tracemalloc.start()
    try:
        total = sum(int(documents.sizes.sum()) for documents in corpus.documents())
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == corpus.n_tokens
    assert peak > 8 * N_DOCUMENTS  # it does see the arrays
    assert kept < N_DOCUMENTS
