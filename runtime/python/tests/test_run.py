"""Loading models and calling them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tfc

from .conftest import FIXTURES

IMAGES = np.load(FIXTURES / "fmnist_images.npz")["image"]
LOGITS = np.load(FIXTURES / "fmnist_logits.npz")["logits"]


@pytest.fixture(scope="module")
def model(bundle: Path) -> tfc.Model:
    return tfc.load(bundle, threads=1)


def test_outputs_are_those_of_the_reference(model: tfc.Model) -> None:
    outputs = model(image=IMAGES)
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32 and outputs["logits"].shape == (32, 10)
    np.testing.assert_allclose(outputs["logits"], LOGITS, atol=1e-4)
    np.testing.assert_array_equal(model(IMAGES)["logits"], outputs["logits"])


def test_outputs_are_those_of_the_command_line(bundle: Path, model: tfc.Model, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    command = [sys.executable, "-m", "tfc", "run", bundle, "--threads", "1", "--inputs", FIXTURES / "fmnist_images.npz", "--outputs", out]
    subprocess.run(command, check=True)
    np.testing.assert_array_equal(np.load(out)["logits"], model(IMAGES)["logits"])


def test_signature(model: tfc.Model) -> None:
    (image,) = model.inputs
    (logits,) = model.outputs
    assert (image.name, image.dtype, image.shape) == ("image", np.float32, ("batch", 1, 28, 28))
    assert (logits.name, logits.text, repr(logits)) == ("logits", "f32[batch, 10]", "logits: f32[batch, 10]")
    low, high = model.dims["batch"]
    assert low <= 1 < high
    assert model.name == "vit" and model.threads == 1 and model.cpu_variant in model.build_info + model.cpu_variant
    assert repr(model) == "<tfc.Model vit(image: f32[batch, 1, 28, 28]) -> logits: f32[batch, 10]>"


def test_arrays_of_every_layout(model: tfc.Model) -> None:
    expected = model(IMAGES[::2].copy())["logits"]
    for images in [IMAGES[::2], np.asfortranarray(IMAGES[::2]), IMAGES[::2].copy().swapaxes(2, 3).copy().swapaxes(2, 3)]:
        assert not images.flags.c_contiguous
        np.testing.assert_array_equal(model(images)["logits"], expected)
    unaligned = np.frombuffer(b"." + IMAGES[::2].tobytes(), np.float32, offset=1).reshape(16, 1, 28, 28)
    assert not unaligned.flags.aligned
    np.testing.assert_array_equal(model(unaligned)["logits"], expected)
    readonly = IMAGES[::2].copy()
    readonly.flags.writeable = False
    np.testing.assert_array_equal(model(readonly)["logits"], expected)


def test_contiguous_arrays_are_not_copied(model: tfc.Model) -> None:
    """Peak memory is that of the outputs: NumPy reports what it allocates, and a copy would be an array."""
    import tracemalloc

    images = np.zeros((32, 1, 28, 28), np.float32)
    model(images)
    tracemalloc.start()
    model(images)
    peak = tracemalloc.get_traced_memory()[1]
    model(images[:, :, ::-1])
    copied = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes // 2 < images.nbytes <= copied


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (IMAGES.astype(np.float64), ["input `image`", "expected f32[batch, 1, 28, 28]", "got f64[32, 1, 28, 28]"]),
        (IMAGES.astype(">f4"), ["expected f32", "got >f4[32, 1, 28, 28]"]),
        (IMAGES.astype(np.complex64), ["expected f32", "got complex64"]),
        (IMAGES[:, 0], ["expected f32[batch, 1, 28, 28]", "got f32[32, 28, 28]"]),
        (IMAGES[:, :, :27], ["expected f32[batch, 1, 28, 28]", "got f32[32, 1, 27, 28]"]),
        ([[1, 2]], ["expected f32", "got i64[1, 2]"]),
        (np.float32(1), ["expected f32[batch, 1, 28, 28]", "got f32[]"]),
        ("picture", ["expected f32", "<U7"]),
        (None, ["expected f32", "got object[]"]),
        (np.array(["2026-01-01"], "datetime64[D]"), ["expected f32", "datetime64[D]"]),
    ],
)
def test_values_that_do_not_fit(model: tfc.Model, images: object, parts: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        model(images)
    assert all(part in str(error.value) for part in parts), error.value


def test_sizes_out_of_range(bundle: Path, tmp_path: Path) -> None:
    fixed = tfc.compile(FIXTURES / "vit_fmnist.onnx", output=tmp_path / "small", dims={"batch": (1, 4)}, level=1)
    model = tfc.load(fixed)
    assert model.dims == {"batch": (1, 4)}
    assert model(IMAGES[:4])["logits"].shape == (4, 10)
    with pytest.raises(ValueError, match="batch.*5|5.*batch"):
        model(IMAGES[:5])


def test_arguments_that_do_not_fit(model: tfc.Model) -> None:
    for call, text in [
        (lambda: model(), "input `image` is missing: expected f32[batch, 1, 28, 28] (given: nothing)"),
        (lambda: model(picture=IMAGES), "the model has no input `picture` (it has: `image`)"),
        (lambda: model(IMAGES, image=IMAGES), "input `image` is given twice"),
        (lambda: model(IMAGES, IMAGES), "2 inputs are given, and the model has 1: `image`"),
    ]:
        with pytest.raises(TypeError) as error:
            call()
        assert str(error.value) == text


def test_dims_are_checked(model: tfc.Model) -> None:
    assert model(IMAGES, dims={"batch": 32})["logits"].shape == (32, 10)
    with pytest.raises(ValueError, match="batch"):
        model(IMAGES, dims={"batch": 31})
    with pytest.raises(ValueError, match="size"):
        model(IMAGES, dims={"size": 31})


def test_profile(model: tfc.Model) -> None:
    profile = model.profile(IMAGES)
    np.testing.assert_array_equal(profile.outputs["logits"], model(IMAGES)["logits"])
    assert 0 < sum(step.seconds for step in profile.steps) <= profile.seconds
    assert all(step.threads == 1 and step.tasks >= 1 and step.name and step.summary for step in profile.steps)
    assert any(step.nodes for step in profile.steps)


def test_threads_call_at_the_same_time(bundle: Path) -> None:
    model = tfc.load(bundle, threads=2)
    assert model.threads == 2
    expected = [model(IMAGES[i : i + 4])["logits"] for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(model(IMAGES[i : i + 4])["logits"], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_interpreter_goes_on_during_a_call(model: tfc.Model) -> None:
    images = np.repeat(IMAGES, 32, axis=0)
    inside, over = threading.Event(), threading.Event()

    def call() -> None:
        inside.set()
        model(images)
        over.set()

    # So nobody has to give up the interpreter: this thread gets on before the end of the call only if the call does.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=call)
        thread.start()
        inside.wait()
        during = not over.is_set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert during


def test_what_cannot_be_loaded(bundle: Path, tmp_path: Path) -> None:
    text_file = tmp_path / "text.so"
    text_file.write_text("This is a text.")
    (tmp_path / "empty").mkdir()
    for path in [tmp_path / "absent.so", tmp_path / "empty", text_file]:
        with pytest.raises(tfc.Error) as error:
            tfc.load(path)
        told = subprocess.run([sys.executable, "-m", "tfc", "run", path], capture_output=True, text=True, check=False)
        assert told.stderr == f"error: {error.value}\n" and error.value.code == told.returncode
    with pytest.raises(tfc.Error, match="CPU variant `pentium`"):
        tfc.load(bundle, cpu="pentium")
    assert tfc.load(bundle, cpu="baseline").cpu_variant == "baseline"


@pytest.mark.skipif("TFC_ZOO" not in os.environ, reason="TFC_ZOO does not say where the models are")
def test_bert_of_the_zoo(tmp_path: Path) -> None:
    folder = Path(os.environ["TFC_ZOO"]) / "bert"
    model = tfc.load(tfc.compile(folder / "model.onnx", output=tmp_path / "bert"))
    for inputs in sorted(folder.glob("inputs*.npz")):
        outputs = model(**np.load(inputs))
        reference = np.load(inputs.with_name(inputs.name.replace("inputs", "outputs")))
        assert set(outputs) == set(reference)
        for name, expected in reference.items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-5)
