"""What errors about other programs' files tell to do, done: the code in the text is run, and the weights are there.

Most of these programs are installed nowhere here; where one is, its remedy is followed.
"""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import merge

WEIGHTS = {"encoder.w": np.arange(6, dtype=np.float32).reshape(2, 3), "encoder.b": np.ones(3, np.float32)}


def told(path: Path) -> str:
    """What opening the file says."""
    with pytest.raises(merge.MergeError) as refused:
        merge.open_checkpoint(path)
    return str(refused.value)


def holds(path: Path, wanted: Mapping[str, Any]) -> None:
    """The checkpoint has these arrays, and no others."""
    got = merge.load_checkpoint(path)
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert np.array_equal(got[name].numpy(), np.asarray(value)), name


def ran(code: str, **names: Any) -> Any:
    """The value of an expression of the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eval(code, names)


class Network(torch.nn.Module):
    """An embedding whose weights are its output's too, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.out = torch.nn.Linear(4, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.words(tokens)))


def torchscript(model: torch.nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.trace(model, torch.zeros(2, dtype=torch.long)), path)


def export(model: torch.nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(model, (torch.zeros(2, dtype=torch.long),)), path)


@pytest.mark.parametrize("write", [torchscript, export])
def test_programs_of_torch(tmp_path: Path, write: Callable[..., None]) -> None:
    model = Network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(model, tmp_path / "m.pt2")
    (code,) = re.findall(r"torch\.save\(.*, OUT\)", told(tmp_path / "m.pt2"))
    ran(code, torch=torch, FILE=tmp_path / "m.pt2", OUT=tmp_path / "out.pt")
    holds(tmp_path / "out.pt", {name: value.detach() for name, value in model.state_dict().items()})


def test_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "IN.npy", WEIGHTS["encoder.w"])
    (code,) = re.findall(r"numpy\.savez\(.*?\)\)", told(tmp_path / "IN.npy"))
    ran(
        code.replace("'IN.npy'", "IN").replace("'OUT.npz'", "OUT"), numpy=np, IN=tmp_path / "IN.npy", OUT=tmp_path / "o"
    )
    holds(tmp_path / "o.npz", {"NAME": WEIGHTS["encoder.w"]})


def test_matlab(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "m.mat", {"w": WEIGHTS["encoder.w"]})
    (code,) = re.findall(r"numpy\.savez\(.*\)", told(tmp_path / "m.mat"))
    import scipy

    ran(code.replace("'OUT.npz'", "OUT"), numpy=np, scipy=scipy, FILE=tmp_path / "m.mat", OUT=tmp_path / "out")
    holds(tmp_path / "out.npz", {"w": WEIGHTS["encoder.w"]})


def saved(arrays: Mapping[str, Any], path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file(dict(arrays), path)
    return path


def test_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, size]) for name, size in (("x", 2), ("y", 3))]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "encoder.w"], ["t"]),
        onnx.helper.make_node("Add", ["t", "encoder.b"], ["y"]),
    ]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)), tmp_path / "m")
    (code,) = re.findall(r"\{.*\}", told(tmp_path / "m"))
    holds(saved(ran(code, onnx=onnx, FILE=tmp_path / "m"), tmp_path / "out.safetensors"), WEIGHTS)


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, value in WEIGHTS.items():
        writer.add_tensor(name, value)
    codes = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("codes", codes, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (code,) = re.findall(r"\{.*\}", told(tmp_path / "m.gguf"))
    arrays = ran(code, gguf=gguf, FILE=tmp_path / "m.gguf")
    assert np.allclose(arrays.pop("codes"), 1, atol=1e-3)
    holds(saved(arrays, tmp_path / "out.safetensors"), WEIGHTS)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_keras(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = [keras.Input((4,)), keras.layers.Dense(3, name="d"), keras.layers.BatchNormalization(name="bn")]
    model, file = keras.Sequential(layers), tmp_path / name
    model.save_weights(file) if "weights" in name else model.save(file)
    values = [weight.numpy() for weight in model.weights]
    text = told(file)
    load = re.findall(r"keras\.saving\.load_model\(FILE\)", text)[0]
    model = model if "weights" in name else ran(load, keras=keras, FILE=file)
    if "weights" in name:
        model.set_weights([0 * value for value in values])
        ran(re.findall(r"model\.load_weights\(FILE\)", text)[0], model=model, FILE=file)
    arrays = ran(re.findall(r"\{.*\}", text)[0], model=model)
    holds(saved(arrays, tmp_path / "out.safetensors"), dict(zip(arrays, values, strict=True)))


@pytest.mark.parametrize("kind", ["flax", "orbax"])
def test_trees_of_jax(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    jnp, flax = pytest.importorskip("jax.numpy"), pytest.importorskip("flax")
    for part in ("flax.serialization", "flax.traverse_util", *["orbax.checkpoint"] * (kind == "orbax")):
        pytest.importorskip(part)
    orbax = sys.modules.get("orbax")
    from safetensors.flax import save_file

    arrays = {name.removeprefix("encoder."): jnp.asarray(value) for name, value in WEIGHTS.items()}
    tree: Any = {"params": {"encoder": arrays}, "step": 3}
    place = tmp_path / "m"
    if kind == "flax":
        place.write_bytes(flax.serialization.to_bytes(tree))
    else:
        assert orbax is not None
        orbax.checkpoint.PyTreeCheckpointer().save(place, tree)
    text = told(place)
    code = re.findall(r"tree = (.*?), and save", text)[0]
    tree = ran(code, flax=flax, orbax=orbax, FILE=place, FOLDER=place)
    flat = ran(re.findall(r"flax\.traverse_util\.flatten_dict\(.*?\)", text)[0], flax=flax, tree=tree)
    save_file(flat, tmp_path / "out.safetensors")
    holds(tmp_path / "out.safetensors", WEIGHTS)


def test_a_model_pickled_whole_by_a_program_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As YOLOv5 saves it, in a dict: the code works where the program's modules can be imported, as in its clone."""
    package, module = types.ModuleType("models"), types.ModuleType("models.yolo")
    monkeypatch.setitem(sys.modules, "models", package)
    monkeypatch.setitem(sys.modules, "models.yolo", module)
    kind = type("Model", (Network,), {"__module__": "models.yolo"})
    module.Model = kind  # pyright: ignore[reportAttributeAccessIssue]
    model = kind().eval().half()
    torch.save({"epoch": -1, "model": model, "ema": None}, tmp_path / "yolov5.pt")
    (code,) = re.findall(r"torch\.save\(.*, OUTPUT\)", told(tmp_path / "yolov5.pt"))
    ran(code, torch=torch, FILE=tmp_path / "yolov5.pt", OUTPUT=tmp_path / "out.pt")
    holds(tmp_path / "out.pt", {name: value.detach().float() for name, value in model.state_dict().items()})
