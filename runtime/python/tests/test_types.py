"""Every element type, scalars, empty arrays, sizes that do not follow from the inputs, and values that a model refuses, by small
graphs in text form."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import tfc

TYPES = {
    "bool": np.bool_, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16, "i32": np.int32, "u32": np.uint32,
    "i64": np.int64, "u64": np.uint64, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip


def load(folder: Path, text: str) -> tfc.Model:
    (folder / "graph.tir").write_text("tfc.ir 1\n" + text)
    return tfc.load(tfc.compile(folder / "graph.tir", output=folder / "graph.so", mcpu="baseline", level=0), threads=1)


def test_every_element_type(tmp_path: Path) -> None:
    lines = ["symbol n 0..9", *(f"input %{name}: {name}[n]" for name in TYPES), *(f"output {name}_out = %{name}" for name in TYPES)]
    model = load(tmp_path, "\n".join(lines))
    assert [t.dtype for t in model.inputs] == [np.dtype(t) for t in TYPES.values()]
    for values in [[0, 1, 1], []]:
        inputs = {name: np.array(values).astype(dtype) for name, dtype in TYPES.items()}
        outputs = model(**inputs)
        for name, dtype in TYPES.items():
            assert outputs[f"{name}_out"].dtype == dtype
            np.testing.assert_array_equal(outputs[f"{name}_out"], inputs[name])
    # The bits of bf16 will do; those of another type will not.
    ones = {name: np.ones(2, dtype) for name, dtype in TYPES.items()}
    bits = model(**{**ones, "bf16": ones["bf16"].view(np.uint16)})["bf16_out"]
    assert bits.dtype == ml_dtypes.bfloat16 and bits.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"input `bf16`: expected bf16\[n\], got i16\[2\]"):
        model(**{**ones, "bf16": ones["bf16"].view(np.int16)})
    with pytest.raises(ValueError, match=r"input `f16`: expected f16\[n\], got bfloat16\[2\]"):
        model(**{**ones, "f16": ones["bf16"]})


def test_bf16_without_ml_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    model = load(tmp_path, "input %x: bf16[2]\noutput y = %x")
    assert model.inputs[0].dtype == np.uint16
    np.testing.assert_array_equal(model(np.array([1, 0x3F80], np.uint16))["y"], np.array([1, 0x3F80], np.uint16))


def test_numpy_has_no_elements_of_4_bits(tmp_path: Path) -> None:
    model = load(tmp_path, "const %c: i4[2] = [1, 2]\noutput y = %c")
    assert model.outputs[0].dtype is None
    with pytest.raises(TypeError, match=r"output `y` is i4\[2\], which NumPy has not"):
        model()


def test_scalars(tmp_path: Path) -> None:
    model = load(tmp_path, "input %x: f32[]\ninput %y: bf16[]\n%z = neg %x : f32[]\noutput z = %z\noutput y = %y")
    for x in [np.float32(2), np.array(2, np.float32)]:
        outputs = model(x, np.array(3, ml_dtypes.bfloat16))
        assert outputs["z"].shape == () == outputs["y"].shape
        assert outputs["z"] == -2 and outputs["y"] == 3
    with pytest.raises(ValueError, match=r"expected f32\[\], got f32\[1\]"):
        model(np.ones(1, np.float32), np.array(3, ml_dtypes.bfloat16))


def test_sizes_that_do_not_follow_from_inputs(tmp_path: Path) -> None:
    model = load(tmp_path, "symbol n 0..9\n%y = iota {elem = i64, shape = [n], axis = 0} : i64[n]\noutput y = %y")
    np.testing.assert_array_equal(model(dims={"n": 4})["y"], np.arange(4))
    with pytest.raises(ValueError, match="`n`"):
        model()
    with pytest.raises(ValueError, match="10"):
        model(dims={"n": 10})


def test_names_that_are_no_identifiers(tmp_path: Path) -> None:
    model = load(tmp_path, 'input %"a b": f32[1]\ninput %dims: f32[1]\n%y = sub %"a b", %dims : f32[1]\noutput "y:0" = %y')
    one = np.ones(1, np.float32)
    assert model(one, 3 * one)["y:0"] == -2
    with pytest.raises(TypeError):
        model(**{"a b": one, "dims": one})


def test_refused_values_are_errors(tmp_path: Path) -> None:
    text = "const %table: f32[3] = [1, 2, 3]\ninput %i: i64[2]\n%y = gather %table, %i {axis = 0} : f32[2]\noutput y = %y"
    model = load(tmp_path, text)
    assert model(np.array([2, 0]))["y"].tolist() == [3, 1]
    with pytest.raises(tfc.Error, match="graph_run failed with status .*index") as error:
        model(np.array([2, 3]))
    assert error.value.code == 1
    assert model([1, 1])["y"].tolist() == [2, 2]
