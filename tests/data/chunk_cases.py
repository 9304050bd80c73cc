"""What several tests of the data half share."""

from rwkvkit.data.chunks import Chunk, task_chunks
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.tasks import make_tasks


def chunks(
    inputs: list[InputFile], chunk_bytes: int = 1 << 20, task_bytes: int | None = None
) -> list[Chunk]:
    """Return the chunks of files that are cut into tasks of ``task_bytes``."""
    return [
        chunk
        for task in make_tasks(inputs, task_bytes)
        if not task.hashes_only
        for chunk in task_chunks(task, chunk_bytes)
    ]
