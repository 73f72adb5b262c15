"""Compiling models, and the command line in the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfc

from .conftest import FIXTURES

VIT = FIXTURES / "vit_fmnist.onnx"


def command_line(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tfc", *map(str, args)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_calibrated_on_paths_and_arrays(tmp_path: Path, as_dictionary: bool) -> None:
    path = FIXTURES / "fmnist_calib.npz"
    samples = {"image": np.load(path)["image"][:48]}
    np.savez(tmp_path / "a.npz", image=samples["image"][:24])
    parts = [tmp_path / "a.npz", {"image": samples["image"][24:]}]
    bundle = tfc.compile(VIT, output=tmp_path / "vit", quant="w8a8", calib=samples if as_dictionary else parts, holdout=8, mcpu="native")
    model = tfc.load(bundle)
    test = np.load(FIXTURES / "fmnist_images.npz")["image"]
    reference = np.load(FIXTURES / "fmnist_logits.npz")["logits"]
    logits = model(test)["logits"]
    assert np.linalg.norm(logits - reference) < 0.1 * np.linalg.norm(reference)
    assert not np.allclose(logits, reference, atol=1e-4)


def test_options_reach_the_compiler(tmp_path: Path) -> None:
    bundle = tfc.compile(
        VIT,
        output=tmp_path / "vit",
        name="clothes",
        quant="w8a8",
        quant_override={"blocks.0/": "f32", "blocks.1/": "w4a8"},
        dims={"batch": 2},
        level=2,
        weights="external",
        cpu_variants=["baseline", "avx2"],
    )
    assert bundle == tmp_path / "vit" and (bundle / "clothes.h").exists()
    shown = command_line("inspect", bundle).stdout
    model = tfc.load(bundle, cpu="baseline")
    assert model.name == "clothes" and model.dims == {} and model.inputs[0].shape == (2, 1, 28, 28)
    for option in ["-O2", "--quant=w8a8", "--quant-override=blocks.0/=f32", "--quant-override=blocks.1/=w4a8", "--dim=batch=2"]:
        assert option in shown or option in model.build_info, option


def test_ranges_and_shapes(tmp_path: Path) -> None:
    def batch(**options: object) -> object:
        path = tfc.compile(VIT, output=tmp_path / "vit.so", level=0, mcpu="baseline", **options)  # type: ignore[arg-type]
        assert path == tmp_path / "vit.so"
        model = tfc.load(path)
        return model.dims.get("batch", model.inputs[0].shape[0])

    assert batch(dims={"batch": (2, 5)}) == (2, 5)
    assert batch(dims={"batch": (None, 5)})[1] == 5  # type: ignore[index]
    assert batch(shapes={"image": (3, 1, 28, 28)}) == 3


def test_errors_are_those_of_the_command_line(tmp_path: Path) -> None:
    not_a_model = tmp_path / "text.onnx"
    not_a_model.write_text("This is a text.")
    calib = FIXTURES / "fmnist_calib.npz"
    cases: list[tuple[Path, dict[str, object], list[object]]] = [
        (tmp_path / "absent.onnx", {}, []),
        (not_a_model, {}, []),
        (VIT, {"quant": "w3a3"}, ["--quant=w3a3"]),
        (VIT, {"quant": "w8a8", "quant_override": {"(": "f32"}}, ["--quant=w8a8", "--quant-override=(=f32"]),
        (VIT, {"calib": calib}, ["--calib", calib]),
        (VIT, {"level": 7}, ["-O7"]),
        (VIT, {"options": ["--nothing"]}, ["--nothing"]),
        (VIT, {"dims": {"sequence": 3}}, ["--dim", "sequence=3"]),
        (VIT, {"shapes": {"image": (3, 3)}}, ["--shape", "image=3x3"]),
        (VIT, {"target": "riscv64gc-unknown-linux-gnu"}, ["--target=riscv64gc-unknown-linux-gnu"]),
        (VIT, {"quant": "w8a8", "max_error": {"logits": 0.5}}, ["--quant=w8a8", "--max-error=logits=0.5"]),
    ]
    for model, options, words in cases:
        with pytest.raises(tfc.Error) as error:
            tfc.compile(model, output=tmp_path / "out", **options)  # type: ignore[arg-type]
        told = command_line("compile", model, "-o", tmp_path / "out", *words)
        assert f"error: {error.value}".splitlines()[0] in told.stderr, (str(error.value), told.stderr)
        assert error.value.code == told.returncode, told.stderr
        assert not (tmp_path / "out").exists()


def test_samples_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(tfc.Error) as error:
        tfc.compile(VIT, output=tmp_path / "out", quant="w8a8", calib={"picture": np.zeros((9, 1, 28, 28), np.float32)})
    assert all(part in str(error.value) for part in ["the calibration data does not fit the model", "`image`", "`picture`"])


@pytest.mark.parametrize("ignored", [False, True])
def test_interrupts_end_the_command(ignored: bool) -> None:
    """Ctrl-C ends the command at once, unless whoever started it said that it is ignored."""
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN if {ignored} else signal.default_int_handler)
from tfc import _tfc, __main__
def command(args):
    signal.raise_signal(signal.SIGINT)
    return 7
_tfc.main = command
sys.exit(__main__.main())
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False).returncode
    assert ended == (7 if ignored else -2)


def test_the_command() -> None:
    script = Path(sys.executable).with_name("tfc")
    for command in ([script], [sys.executable, "-m", "tfc"]):
        shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        assert shown.startswith("tfc ")
    wrong = command_line("compile", "--nothing")
    assert wrong.returncode == 2 and "--nothing" in wrong.stderr
