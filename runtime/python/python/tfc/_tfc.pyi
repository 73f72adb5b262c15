from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Error", "Model", "Profile", "Step", "TensorType", "compile", "load", "main"]

class Error(Exception):
    """What ``tfc`` says on the command line."""

    code: int
    """The exit code of the command line: 1 the input is bad or an operation failed, 2 wrong options, 3 something is not supported,
    4 an accuracy budget was missed."""

@final
class TensorType:
    """The name, the element type and the sizes of an input or an output."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any] | None:
        """``None`` for elements of 4 bits, which NumPy has not. Elements in bf16 are ``ml_dtypes.bfloat16`` if there is that package,
        else ``uint16`` with the same bits; inputs may be either."""
    @property
    def shape(self) -> tuple[int | str, ...]:
        """A number for each size that is fixed, else its expression over the free dimensions, such as ``"batch"`` or ``"2*seq+1"``."""
    @property
    def text(self) -> str:
        """Such as ``f32[batch, 64]``."""

@final
class Step:
    """A kernel in a profile."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def summary(self) -> str:
        """Operators and types in one line."""
    @property
    def nodes(self) -> list[str]:
        """The ONNX nodes that it computes."""
    @property
    def seconds(self) -> float: ...
    @property
    def tasks(self) -> int:
        """Independent parts of its work."""
    @property
    def threads(self) -> int:
        """How many threads worked on it."""

@final
class Profile:
    """A run with a clock."""

    @property
    def outputs(self) -> dict[str, NDArray[Any]]: ...
    @property
    def seconds(self) -> float:
        """Of the whole run."""
    @property
    def steps(self) -> list[Step]:
        """In the order of the run."""

@final
class Model:
    """A model that is ready to run. Calls release the interpreter's lock; any number of threads may call at the same time, each
    call with its own memory, of which one uses the model's threads and the others only their own."""

    # `dims` is `Mapping[str, int] | None`, but then type checkers would refuse `model(**arrays)`.
    def __call__(self, *inputs: ArrayLike, dims: Any = None, **named: ArrayLike) -> dict[str, NDArray[Any]]:
        """Runs the model on inputs in its order or by name. Returns the outputs by name, in its order.

        Contiguous arrays are used where they are, others are copied; nothing is converted. Nobody may write to them during the call.
        ``dims`` is a dictionary of the values of free dimensions that do not follow from the shapes. (An input that is called
        ``dims`` can be given by its position.)

        Raises:
            ValueError: An element type or a shape is not what the model takes; the text has both.
            TypeError: An input is missing, given twice, or not one of the model's.
            MemoryError: There is no memory for the outputs or for what the model needs besides.
            Error: The model refuses the values, such as an index out of range.
        """
    def profile(self, *inputs: ArrayLike, dims: Any = None, **named: ArrayLike) -> Profile:
        """A call with a clock for every kernel."""
    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorType, ...]:
        """In the order of positional arguments."""
    @property
    def outputs(self) -> tuple[TensorType, ...]: ...
    @property
    def dims(self) -> dict[str, tuple[int, int]]:
        """The free dimensions with the smallest and the largest value of each."""
    @property
    def threads(self) -> int: ...
    @property
    def cpu_variant(self) -> str:
        """The code in use, such as ``"avx512vnni"``."""
    @property
    def build_info(self) -> str:
        """Compiler, target and options in one line."""

def load(
    path: str | PathLike[str],
    *,
    threads: int = 0,
    cpu: str | None = None,
    weights: str | PathLike[str] | None = None,
    name: str | None = None,
) -> Model:
    """Loads a bundle or a shared object. Loading runs code: load only what you trust.

    Args:
        path: The folder of a bundle, or a ``.so``.
        threads: 0 for as many as there are CPUs, 1 for the calling thread alone.
        cpu: The CPU variant, such as ``"baseline"``; else that of the environment variable ``TFC_CPU``, else the best that runs here.
        weights: The weights file, if it is not beside the code.
        name: The model's name in a shared object that holds several.

    Raises:
        Error: It cannot be loaded.
    """

def compile(args: Sequence[str]) -> Path: ...
def main(args: Sequence[str]) -> int: ...
