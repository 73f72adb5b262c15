"""An ahead-of-time compiler for transformers: ONNX in, native code out, called with NumPy arrays.

    import tfc

    bundle = tfc.compile("bert.onnx", quant="w4a8", calib="data.npz")
    model = tfc.load(bundle, threads=2)
    outputs = model(input_ids=ids, attention_mask=mask)     # a dictionary of arrays
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import _tfc
from ._tfc import Error, Model, Profile, Step, TensorType, load

__all__ = ["Error", "Model", "Profile", "Step", "TensorType", "compile", "load"]

_Path = str | os.PathLike[str]
_Samples = _Path | Mapping[str, Any]


def compile(
    model: _Path,
    *,
    output: _Path | None = None,
    name: str | None = None,
    quant: str | None = None,
    quant_override: Mapping[str, str] | None = None,
    calib: _Samples | Sequence[_Samples] | None = None,
    calib_mask: str | None = None,
    calib_cache: _Path | None = None,
    holdout: int | None = None,
    max_error: float | Mapping[str, float] | None = None,
    max_kl: float | Mapping[str, float] | None = None,
    require_top1: float | Mapping[str, float] | None = None,
    dims: Mapping[str, int | tuple[int | None, int | None]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    level: int | None = None,
    weights: str | None = None,
    target: str | None = None,
    mcpu: str | None = None,
    cpu_variants: Sequence[str] | None = None,
    options: Sequence[str] = (),
    verbose: bool = False,
) -> Path:
    """Compiles an ONNX model and returns where the output is: what ``tfc compile`` does, with its options. The interpreter's lock
    is released; an interrupt (Ctrl-C) is raised when the compiler is done.

    Args:
        model: The model, ``.onnx`` or ``.tir``.
        output: Where to write (``-o``): a folder for a bundle, or a file whose extension says what.
        name: The prefix of all symbols, a C identifier.
        quant: How products are quantized, such as ``"w4a8"`` or ``"w8a8:dynamic"``.
        quant_override: Other schemes for the nodes whose names a regular expression finds; the last one that matches holds.
        calib: Samples: paths of ``.npz`` archives, or dictionaries of arrays with the names of the model's inputs, or several of
            these. Samples are along the first axis.
        calib_mask: The input whose zeros are positions that do not count.
        calib_cache: A file that keeps what calibration observes.
        holdout: How many samples are kept apart to measure on.
        max_error, max_kl, require_top1: What the result must keep on these, for all outputs or by output.
        dims: Sizes of free dimensions: a number, or a range whose ends may be ``None``.
        shapes: Shapes of inputs.
        level: How much the compiler does, 0 to 3.
        weights: ``"embedded"`` or ``"external"``.
        target, mcpu, cpu_variants: What the code is for.
        options: More options of ``tfc compile``, as on the command line.
        verbose: Progress and notes on standard error.

    Raises:
        Error: In the words of the command line.
    """
    args = [f"--{key}={value}" for key, value in [
        ("output", None if output is None else os.fspath(output)),
        ("name", name),
        ("quant", quant),
        ("calib-mask", calib_mask),
        ("calib-cache", None if calib_cache is None else os.fspath(calib_cache)),
        ("holdout", holdout),
        ("weights", weights),
        ("target", target),
        ("mcpu", mcpu),
        ("cpu-variants", None if cpu_variants is None else ",".join(cpu_variants)),
    ] if value is not None]  # fmt: skip
    args += [f"--quant-override={regex}={spec}" for regex, spec in (quant_override or {}).items()]
    for key, limit in [("max-error", max_error), ("max-kl", max_kl), ("require-top1", require_top1)]:
        if isinstance(limit, Mapping):
            args += [f"--{key}={output}={number}" for output, number in limit.items()]
        elif limit is not None:
            args.append(f"--{key}={limit}")
    args += [f"--dim={dim}={_size(size)}" for dim, size in (dims or {}).items()]
    args += [f"--shape={port}={'x'.join(map(str, shape))}" for port, shape in (shapes or {}).items()]
    args += [] if level is None else [f"-O{level}"]
    args += ["--verbose"] if verbose else []
    args += options
    several = [calib] if isinstance(calib, str | os.PathLike | Mapping) else calib or []
    with tempfile.TemporaryDirectory(prefix="tfc-") as folder:
        for i, samples in enumerate(several):
            path = _archive(Path(folder) / f"calib-{i}.npz", samples) if isinstance(samples, Mapping) else samples
            args.append(f"--calib={os.fspath(path)}")
        return _tfc.compile([*args, "--", os.fspath(model)])


def _size(size: int | tuple[int | None, int | None]) -> str:
    if isinstance(size, tuple):
        return "..".join("" if end is None else str(end) for end in size)
    return str(size)


def _archive(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Writes arrays as ``numpy.savez`` does, under any names."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return path
