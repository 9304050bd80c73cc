"""Where the weights are that a path stands for, and which run they come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rwkvkit import files
from rwkvkit.data.stages import Encode
from rwkvkit.errors import DataError
from rwkvkit.model.adapter import CONFIG, STATE_FILE, check_base, holds_states, record_path
from rwkvkit.model.checkpoint import read_checkpoint
from rwkvkit.train.adapt import result_name
from rwkvkit.train.checkpoints import CheckpointStore
from rwkvkit.train.portion import MODEL_FILE
from rwkvkit.train.run_files import RunFiles
from rwkvkit.train.run_record import read_record
from rwkvkit.train.tuning import TuningConfig

_RESULTS = tuple(result_name(TuningConfig(method=name)) for name in ("full", "lora", "state"))


class Weights(NamedTuple):
    """What a model is loaded from.

    Attributes:
        checkpoint: the file of a whole model.
        adapter: what of fine-tuning is merged into it: an adapter's folder or a file of states.
        notes: lines for people.
    """

    checkpoint: Path
    adapter: Path | None
    notes: tuple[str, ...] = ()


def find_weights(source: Path, adapter: Path | None, report: Callable[[str], None]) -> Weights:
    """Return the weights of a whole model, or those of a base with what was tuned beside it.

    Args:
        source: a run's folder, or what :func:`weights_at` takes beside it. Where it holds an
            adapter or tuned states, their record names the base.
        adapter: what goes with ``source``, which then is a whole model; a run's folder will do.
        report: takes a line about each damaged checkpoint that is passed over.

    Raises:
        DataError: there are none, the base is not there, or it is another than the one tuned.
    """
    found = weights_at(source, report)
    if adapter is not None:
        base, tuned = found, weights_at(adapter, report)
        if is_tuned(base):
            raise DataError(
                "is no whole model but what fine-tuning left beside one",
                where=str(base),
                hint="give its base, or leave --adapter out",
            )
    elif is_tuned(found):
        base, tuned = _base_of(found), found
    else:
        return Weights(found, None)
    check_base(base, tuned)
    return Weights(base, tuned, () if adapter else (f"{tuned}, and its base {base}",))


def weights_at(source: Path, report: Callable[[str], None]) -> Path:
    """Return the file with weights, or the folder of an adapter, that a path stands for.

    Args:
        source: a run's folder (what it ended with, or its newest whole checkpoint), the folder of
            a checkpoint or of an adapter, or the file itself, whether it is there or not.
        report: takes a line about each damaged checkpoint that is passed over.

    Raises:
        DataError: the folder has nothing of this.
    """
    if not source.is_dir():
        return source
    if (source / CONFIG).exists():
        return source
    for name in (MODEL_FILE, STATE_FILE, *_RESULTS):
        if (source / name).exists():
            return source / name
    newest = CheckpointStore(RunFiles(source).checkpoints, keep=1).newest(report)
    if newest is None:
        raise DataError(
            "holds no weights",
            where=str(source),
            hint="give the folder of a run, a checkpoint or an adapter, or a .pth file",
        )
    return weights_at(newest.folder, report)


def is_tuned(path: Path) -> bool:
    """Say whether weights are an adapter or tuned states, and no whole model.

    Args:
        path: from :func:`weights_at`.

    Raises:
        DataError: the file is missing or damaged.
    """
    return path.is_dir() or holds_states(read_checkpoint(path))


def run_ctx_len(path: Path) -> int | None:
    """Return the ``ctx_len`` of the run in whose folder a path lies, None if there is no run.

    Args:
        path: the run's folder, or a file or folder of it.

    Raises:
        DataError: the record of the run is damaged.
    """
    ctx_len = _recipe_of(path).get("ctx_len")
    return ctx_len if isinstance(ctx_len, int) else None


def run_encode(path: Path) -> Encode:
    """Return the ``encode`` stage of the run in whose folder a path lies.

    Args:
        path: the run's folder, or a file or folder of it.

    Returns:
        The stage; that of the World models if there is no run, or it did not prepare its data.

    Raises:
        DataError: the record of the run is damaged.
    """
    prepare = _recipe_of(path).get("prepare")
    stated = prepare.get(Encode.key, {}) if isinstance(prepare, dict) else {}
    try:
        return Encode.model_validate(stated)
    except ValidationError as error:
        raise DataError(
            "the record of the run is damaged at its tokenizer",
            where=str(path),
            hint="name the vocabulary file or tokenizer.json with --vocab",
        ) from error


def _recipe_of(path: Path) -> dict[str, Any]:
    """Return what the record of a run holds of its recipe, nothing if there is no run."""
    path = path.absolute()
    for folder in (path, *path.parents)[:4]:  # up from RUN/checkpoints/step-00000100/model.pth
        recipe = read_record(folder).get("recipe")
        if isinstance(recipe, dict):
            return recipe
    return {}


def _base_of(tuned: Path) -> Path:
    """Return the base that an adapter or states were trained on, as their record names it."""
    record = record_path(tuned)
    known = files.read_json(record).get("base") if record.exists() else None
    path = known.get("path") if isinstance(known, dict) else None
    if isinstance(path, str) and Path(path).is_file():
        return Path(path)
    raise DataError(
        f"its base {path} is not there" if path else "it does not say which base it belongs to",
        where=str(tuned),
        hint=f"name the base: generate and evaluate take BASE.pth --adapter {tuned}, and "
        f"rwkvkit merge BASE.pth {tuned} -o OUT.pth makes one file",
    )
