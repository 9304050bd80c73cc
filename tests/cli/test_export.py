"""Weights leave a run as published models are: bf16, one flat file."""

import shutil

import torch

from rwkvkit import load_model


def test_a_run_a_checkpoint_and_a_file(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    out = folder / "out/tiny"
    final = torch.load(out / "rwkv-final.pth", weights_only=True)
    newest = out / "checkpoints/step-00000012"
    for number, source in enumerate((out, newest, out / "rwkv-final.pth")):
        name = f"{number} of three.pth"
        assert f"next: rwkvkit generate '{name}'" in run("export", str(source), "-o", name).out
        outcome = run("export", str(source), "-o", f"{number}.pth", "--json")
        assert outcome.code == 0, outcome.err
        written = torch.load(folder / f"{number}.pth", weights_only=True)
        assert outcome.facts["tensors"] == len(final)
        assert written.keys() == final.keys()
        assert all(torch.equal(t, final[name].bfloat16()) for name, t in written.items())
    assert load_model(folder / "0.pth").config.n_layer == 2

    prompt = ["--prompt", "The", "--max-tokens", "3", "--vocab", "bytes.txt", "--json"]
    texts = {
        run("generate", str(path), *prompt).out for path in (out, newest, newest / "model.pth")
    }
    assert len(texts) == 1
    assert '"text"' in texts.pop()
    for folder_of in (out, newest):
        assert run("inspect", str(folder_of), "--json").facts["problems"] == []
        assert run("evaluate", str(folder_of), "out/tiny/data", "--max-samples", "1").code == 0

    (out / "rwkv-final.pth").unlink()
    (newest / "model.pth").write_bytes(b"cut")
    outcome = run("export", str(out), "-o", "last.pth", "--json")
    assert outcome.code == 0
    assert "step-00000012 is damaged" in outcome.err
    assert outcome.facts["source"].endswith("step-00000009/model.pth")

    again = run("export", str(out), "-o", "last.pth")
    assert again.code == 2
    assert "give another name" in again.err
    shutil.rmtree(out / "checkpoints")
    empty = run("export", str(out), "-o", "none.pth")
    assert empty.code == 4
    assert "holds no weights" in empty.err
    assert not (folder / "none.pth").exists()
