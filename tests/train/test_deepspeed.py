"""DeepSpeed's stages give the losses of the plain engine, skip what it skips, and share its files.

Two processes over gloo train everything once; the tests look at what they found.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkvkit.errors import RecipeError
from rwkvkit.train.backend import choose_backend
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Placement, choose_placement

CASES = Path(__file__).with_name("deepspeed_cases.py")
STAGES = (1, 2, 3)

pytestmark = pytest.mark.timeout(600)  # the first test waits for all training


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("deepspeed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(CASES), str(rank), port, str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, err = process.communicate(timeout=500)
            assert process.returncode == 0, err[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("arch", ["x052", "x060", "x070"])
@pytest.mark.parametrize("stage", [0, *STAGES])
def test_every_stage_has_the_losses_of_the_plain_engine(found, arch: str, stage: int) -> None:
    curves = found["curves"]
    assert len(curves[f"{arch} plain"]) == 30
    assert curves[f"{arch} zero {stage}"] == pytest.approx(curves[f"{arch} plain"], abs=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_in_bf16_within_its_noise(found, stage: int) -> None:
    curves = found["curves"]
    assert curves[f"bf16 zero {stage}"] == pytest.approx(curves["bf16 plain"], abs=0.01)
    assert curves["bf16 plain"] != pytest.approx(curves["x070 plain"], abs=1e-5)


def test_masters_are_the_weights_of_the_file_not_rounded_ones(found) -> None:
    assert found["masters"] == dict.fromkeys(("1", "2", "3", "3 offloaded"), True)


@pytest.mark.parametrize("name", ["2 offloaded", "3 offloaded"])
def test_offload_changes_nothing(found, name: str) -> None:
    curves = found["curves"]
    assert len(curves[name]) == len(curves[f"bf16 {name}"]) == 10
    assert curves[name] == pytest.approx(curves["x070 plain"][:10], abs=1e-5)
    assert curves[f"bf16 {name}"] == pytest.approx(curves["bf16 plain"][:10], abs=0.01)


@pytest.mark.parametrize("stage", [2, 3])
def test_accumulated_passes_are_one_step(found, stage: int) -> None:
    curves = found["curves"]
    assert curves[f"accumulated {stage}"] == pytest.approx(curves["x070 plain"], abs=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_segments_with_truncated_gradients(found, stage: int) -> None:
    curves = found["curves"]
    assert curves[f"segments {stage}"] == pytest.approx(curves["segments plain"], abs=1e-5)


@pytest.mark.parametrize("stage", [*STAGES, "2 offloaded", "3 offloaded"])
def test_a_saved_state_continues_bit_for_bit(found, stage) -> None:
    resumes = found["resumes"]
    name = f"{stage} to {stage}"
    assert resumes[f"{name} resumed"] == resumes[f"{name} unbroken"]
    assert resumes[f"{name} alone"] == pytest.approx(resumes[f"{name} unbroken"], abs=0.01)


@pytest.mark.parametrize(
    "name",
    ["1 to 3", "3 to 2", "2 to 0", "0 to 3", "1 to 3 offloaded", "3 offloaded to 2 offloaded"],
)
def test_a_state_goes_on_under_another_stage_engine_or_number_of_processes(found, name) -> None:
    resumes = found["resumes"]
    assert resumes[f"{name} resumed"] == pytest.approx(resumes[f"{name} unbroken"], abs=1e-5)
    assert resumes[f"{name} alone"] == pytest.approx(resumes[f"{name} unbroken"], abs=1e-5)


def test_a_gradient_that_is_not_finite_skips_the_step_everywhere(found) -> None:
    assert len(found["skips"]) == 6
    assert all(case == [True, True, False] for case in found["skips"].values()), found["skips"]


@pytest.mark.parametrize("name", ["2", "3"])
def test_the_loop_counts_skipped_steps_alike_everywhere(found, name: str) -> None:
    few, many = found["guards"][f"{name} few"], found["guards"][f"{name} many"]
    assert few["skipped"] == [[False, True, False, True, False, False]] * 2
    assert few["counted"] == [0, 1, 1, 2, 2, 2]
    assert few["ends"] == [None, None]
    assert few["checkpoints"] == ["step-00000003", "step-00000005", "step-00000006"]
    assert many["skipped"] == [[False, False, True, True, True]] * 2
    assert many["ends"] == [["DivergedError", 6], ["FailedElsewhere", 6]]
    assert many["checkpoints"] == ["step-00000002"]


CPU = Placement(torch.device("cpu"), torch.float32, ("", ""))
GPU = Placement(torch.device("cuda"), torch.bfloat16, ("", ""))


def config(**more: Any) -> TrainConfig:
    return TrainConfig(**{"micro_bsz": 2, "lr_init": 1e-3, "lr_final": 1e-4, **more})


@pytest.mark.parametrize(
    ("settings", "placement", "processes", "engine", "reason"),
    [
        ({}, GPU, 1, "torch", "engine torch: one process"),
        ({}, CPU, 2, "torch", "engine torch, gradients added up once a step: no GPUs"),
        ({}, GPU, 8, "deepspeed", "engine deepspeed, ZeRO-2: several GPUs"),
        ({"zero": 0}, GPU, 8, "torch", "train.zero 0"),
        ({"zero": 3}, CPU, 1, "deepspeed", "ZeRO-3: train.zero 3"),
        ({"offload": "all"}, GPU, 1, "deepspeed", "ZeRO-3: train.offload all"),
        ({"offload": "optimizer"}, GPU, 1, "deepspeed", "ZeRO-2: train.offload optimizer"),
        ({"engine": "deepspeed"}, CPU, 1, "deepspeed", "train.engine in the recipe"),
        ({"deepspeed": "zero2-overlap"}, GPU, 2, "deepspeed", "ZeRO-2: train.deepspeed"),
        (
            {"deepspeed": "zero3-offload", "offload": "all"},
            GPU,
            2,
            "deepspeed",
            "ZeRO-3: train.deepspeed, train.offload all",
        ),
    ],
)
def test_the_choice_of_an_engine(settings, placement, processes, engine, reason) -> None:
    backend = choose_backend(config(**settings), placement, processes)
    assert backend.engine == engine
    assert reason in backend.reason


def test_the_settings_follow_the_recipe_and_the_file() -> None:
    settings = choose_backend(config(deepspeed="zero2-overlap", grad_clip=0.5), GPU, 4).settings
    assert settings["train_batch_size"] == 8
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    zero = {"stage": 2, "overlap_comm": True, "contiguous_gradients": True}
    assert settings["zero_optimization"] == zero


@pytest.mark.parametrize(
    ("settings", "file", "message"),
    [
        ({"engine": "torch", "zero": 2}, None, "train.zero 2 needs DeepSpeed"),
        ({"engine": "deepspeed", "zero": 0}, None, "stage 0 shards nothing"),
        ({"zero": 2, "offload": "all"}, None, "under ZeRO-3 only"),
        ({"zero": 3, "compile": True}, None, "hooks that torch.compile cannot take"),
        ({"deepspeed": "absent"}, None, "absent does not exist"),
        ({}, "[1]", "no mapping"),
        ({}, "{", "not readable"),
        ({}, '{"optimizer": {"type": "Adam"}}', "optimizer: leave it out"),
        ({}, '{"gradient_clipping": 2}', "gradient_clipping is 2, the recipe says 1.0"),
        ({}, '{"bf16": {"enabled": false}}', "bf16.enabled is False"),
        ({"zero": 2}, '{"zero_optimization": {"stage": 3}}', "stage is 3, the recipe says 2"),
        (
            {},
            '{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}',
            "zero_optimization.offload_param: the recipe says train.offload none",
        ),
        (
            {"offload": "optimizer"},
            '{"zero_optimization": {"offload_param": {"device": "cpu"}}}',
            "zero_optimization.offload_param: the recipe says train.offload optimizer",
        ),
        ({}, '{"zero_optimization": {"stage": 0}}', "stage is 0, which is none of"),
        ({}, '{"zero_optimization": {"stage": 7}}', "stage is 7, which is none of"),
        ({"zero": 2}, '{"zero_optimization": {"stage": "2"}}', "stage is '2', which is none of"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, settings, file, message) -> None:
    if file is not None:
        (tmp_path / "ds.json").write_text(file)
        settings = settings | {"deepspeed": str(tmp_path / "ds.json")}
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")) as caught:
        choose_backend(config(**settings), GPU, 2)
    assert caught.value.hint


@pytest.mark.parametrize("absent", ["auto", "null"])
def test_values_that_a_file_leaves_open_are_filled_in(tmp_path: Path, absent: str) -> None:
    path = tmp_path / "ds.yaml"
    zero = "stage: 1, offload_optimizer: ABSENT, offload_param: ABSENT"
    text = f"train_micro_batch_size_per_gpu: ABSENT\nzero_optimization: {{{zero}}}\n"
    path.write_text(text.replace("ABSENT", absent))
    backend = choose_backend(config(deepspeed=str(path)), GPU, 2)
    assert backend.zero == 1
    assert backend.settings["train_micro_batch_size_per_gpu"] == 2
    assert backend.settings["zero_optimization"] == {"stage": 1}
    path.write_text(f"zero_optimization: {{stage: {absent}, offload_optimizer: {absent}}}\n")
    backend = choose_backend(config(deepspeed=str(path), offload="optimizer"), GPU, 2)
    assert backend.zero == backend.settings["zero_optimization"]["stage"] == 2
    assert backend.settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_the_hint_for_stage_0_leads_out() -> None:
    with pytest.raises(RecipeError, match="stage 0") as caught:
        choose_backend(config(zero=0, offload="optimizer"), GPU, 2)
    assert "train.offload optimizer needs DeepSpeed" in str(caught.value.hint)
    assert "train.engine" not in str(caught.value.hint)


def test_fp16_is_for_gpus() -> None:
    with pytest.raises(RecipeError, match="fp16 trains on a GPU only"):
        choose_placement("cpu", "fp16")
    half = Placement(torch.device("cuda"), torch.float16, ("", ""))
    backend = choose_backend(config(), half, 1)
    assert backend.engine == "deepspeed"
    assert backend.settings["fp16"]["enabled"] is True
