"""The end of a build: its parts, put in order and written with all that goes beside them."""

import contextlib
import json
from pathlib import Path

import rwkvkit
from rwkvkit import files
from rwkvkit.data import manifest as manifests
from rwkvkit.data.binidx_writer import BinidxWriter
from rwkvkit.data.chain import Chain
from rwkvkit.data.corpus import Corpus
from rwkvkit.data.encoding import placed_rejects
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.manifest import Counts, InputRecord, Manifest, OutputRecord
from rwkvkit.data.parts import Part
from rwkvkit.data.progress import Report
from rwkvkit.data.selection import Selection
from rwkvkit.data.stages import Plan, PlanResult
from rwkvkit.data.tasks import Task
from rwkvkit.data.writing import CorpusWriter, Order, count_output
from rwkvkit.errors import DataError

REJECTS = ".rejects.jsonl"
VALIDATION = "-val"
_PAIR = (".bin", ".idx", ".mask")
SUFFIXES = (*_PAIR, *(VALIDATION + suffix for suffix in _PAIR), REJECTS, manifests.SUFFIX)
"""What a build may leave behind its prefix; the last vouches for the others."""
MASKS = {".bin": ".mask", VALIDATION + ".bin": VALIDATION + ".mask"}
"""The suffix of the mask that tokens of a suffix may have."""

_USUAL_CTX_LENS = (512, 1024, 2048, 4096, 8192, 16384)


def finish(
    chain: Chain,
    folder: Path,
    inputs: list[InputFile],
    tasks: list[Task],
    parts: list[Part],
    memory: int,
    threads: int,
    report: Report,
) -> Manifest:
    """Write the outputs and the manifest of a build into its folder.

    Args:
        chain: the stages.
        folder: of the build; holds the parts.
        inputs: the files that were read.
        tasks: the work, one part each.
        parts: what became of it.
        memory: bytes that the index and the tokens may take while they are put in order.
        threads: that gather tokens.
        report: called with every block written.

    Raises:
        DataError: no document is left, or the corpus is too small for ctx_len.
        OSError: the files cannot be written.
    """
    corpus = Corpus(tasks, parts, inputs)
    rejected = sum(part.record.rejected for part in parts)
    filtered = sum(part.record.filtered for part in parts)
    left_out = sum(part.record.left_out for part in parts)
    if not corpus.n_documents and not left_out:
        raise _empty(chain, rejected, filtered)
    selection = Selection(corpus, chain.rules, folder, memory // 2)
    order = _order(chain)
    n_documents, n_tokens = count_output(selection, order)
    if not n_documents:
        raise DataError(
            "no document is left for training",
            where=str(chain.prefix),
            hint="a larger fraction, or a smaller share for validation, leaves some",
        )
    name = chain.prefix.name
    plan = _planned(chain, n_tokens)
    validation: BinidxWriter | None = None
    with CorpusWriter(
        corpus, selection, folder, memory=memory, threads=threads, report=report
    ) as writer:
        written = writer.write(folder / name, order)
        if chain.rules.validation:
            validation = writer.write_validation(folder / (name + VALIDATION))
    outputs = _records_of(chain, folder, "", written)
    if validation:
        outputs += _records_of(chain, folder, VALIDATION, validation)
    if rejected:
        outputs.append(_write_rejects(chain, folder, inputs, tasks, parts))
    hashes = {int(i): sha for part in parts for i, sha in part.record.inputs.items()}
    read = [
        InputRecord(path=file.name, bytes=file.size, sha256=hashes[i], tag=file.tag)
        for i, file in enumerate(inputs)
    ]
    records = chain.records()
    manifest = Manifest(
        format=manifests.FORMAT,
        rwkvkit=rwkvkit.__version__,
        fingerprint=manifests.fingerprint(records, chain.seed, chain.ctx_len, read),
        prepare=records,
        seed=chain.seed,
        ctx_len=chain.ctx_len,
        inputs=read,
        documents_in=corpus.n_documents + left_out,
        documents=written.n_documents,
        tokens=written.n_tokens,
        rejected=rejected,
        filtered=filtered,
        left_out=left_out,
        duplicates=selection.duplicates,
        validation=Counts(documents=validation.n_documents, tokens=validation.n_tokens)
        if validation
        else None,
        outputs=outputs,
        plan=plan,
        plans=_usual_plans(chain.plan, written.n_tokens),
    )
    return manifests.write_manifest(folder / name, manifest)


def _order(chain: Chain) -> Order:
    shuffle = chain.repeat.shuffle
    return Order(
        repeats=[source.repeat for source in chain.read.sources],
        epochs=chain.repeat.epochs,
        shuffle="reference" if shuffle == "reference" else "keys" if shuffle else None,
        seed=chain.rules.seed,
    )


def _write_rejects(
    chain: Chain, folder: Path, inputs: list[InputFile], tasks: list[Task], parts: list[Part]
) -> OutputRecord:
    path = folder / (chain.prefix.name + REJECTS)
    with path.open("w", encoding="utf-8") as lines:
        for file, reject in placed_rejects(tasks, parts, inputs):
            line = {
                "file": file.name,
                "line": reject.line,
                "reason": reject.reason,
                "raw": reject.raw,
            }
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    return _record(chain, folder, REJECTS, files.sha256(path))


def _records_of(chain: Chain, folder: Path, name: str, written: BinidxWriter) -> list[OutputRecord]:
    hashes = (written.bin_sha256, written.idx_sha256, written.mask_sha256)
    return [
        _record(chain, folder, name + suffix, sha256)
        for suffix, sha256 in zip(_PAIR, hashes, strict=True)
        if sha256
    ]


def _record(chain: Chain, folder: Path, suffix: str, sha256: str) -> OutputRecord:
    path = folder / (chain.prefix.name + suffix)
    return OutputRecord(path=path.name, bytes=path.stat().st_size, sha256=sha256)


def _empty(chain: Chain, rejected: int, filtered: int) -> DataError:
    why = [f"{rejected} lines were rejected"] if rejected else []
    why += [f"{filtered} documents were filtered out"] if filtered else []
    return DataError(
        "the input holds no document",
        where=", ".join(s.name for s in chain.read.sources),
        hint=" and ".join(why) or "every line is blank",
    )


def _planned(chain: Chain, n_tokens: int) -> PlanResult | None:
    if chain.plan is None or chain.ctx_len is None:
        return None
    return chain.plan.plan(n_tokens, chain.ctx_len)


def _usual_plans(plan: Plan | None, n_tokens: int) -> list[PlanResult]:
    plans = []
    if plan:
        for ctx_len in _USUAL_CTX_LENS:
            with contextlib.suppress(DataError):  # the corpus is too small for it
                plans.append(plan.plan(n_tokens, ctx_len))
    return plans
