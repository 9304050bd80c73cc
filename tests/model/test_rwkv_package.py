"""Our checkpoints in the PyPI package ``rwkv``: the same logits, in both its modes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from rwkv_cases import noisy_weights, tokens

from rwkvkit.model.adapter import merged
from rwkvkit.model.checkpoint import load_model, write_checkpoint
from rwkvkit.model.config import ModelConfig

# It reads environment variables when it is imported, prints, and names files without `.pth`.
SCRIPT = """
import sys, warnings
import numpy as np
warnings.simplefilter("ignore")
from rwkv.model import RWKV

path, idx, out = sys.argv[1:]
model = RWKV(model=path.removesuffix(".pth"), strategy="cpu fp32")
idx = np.load(idx).tolist()
whole, _ = model.forward(idx, None, full_output=True)
state, single = None, []
for token in idx:
    logits, state = model.forward([token], state)
    single.append(logits.numpy())
np.savez(out, whole=whole.numpy(), single=np.stack(single))
"""


@pytest.mark.parametrize(
    ("arch", "time_state"),
    [("x052", False), ("x052", True), ("x060", False), ("x060", True), ("x070", False)],
)
def test_the_rwkv_package_agrees(tmp_path, arch, time_state):
    config = ModelConfig(arch=arch, n_layer=3, n_embd=128, vocab_size=300, time_state=time_state)
    path = tmp_path / "model.pth"
    weights = noisy_weights(config)
    if time_state:  # as state tuning leaves them, and `rwkvkit merge` joins them
        states = {name: weights.pop(name) for name in [*weights] if name.endswith("time_state")}
        write_checkpoint(states, tmp_path / "state.pth")
        weights = merged(weights, tmp_path / "state.pth")
    write_checkpoint(weights, path)
    idx = tokens(1, 45, vocab=300)
    np.save(tmp_path / "idx.npy", idx[0].numpy())

    environment = {
        **os.environ,
        "RWKV_JIT_ON": "0",
        "RWKV_CUDA_ON": "0",
        "RWKV_V7_ON": "1" if arch == "x070" else "0",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [str(path), str(tmp_path / "idx.npy"), str(tmp_path / "out.npz")]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    with np.load(tmp_path / "out.npz") as theirs, torch.no_grad():
        ours = load_model(path)(idx)[0].numpy()
        for mode in ("whole", "single"):
            assert np.abs(ours - theirs[mode]).max() < 1e-5 * np.abs(ours).max(), mode
