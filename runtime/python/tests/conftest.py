from __future__ import annotations

from pathlib import Path

import pytest

import tfc

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision transformer in ``fixtures``, in f32."""
    return tfc.compile(FIXTURES / "vit_fmnist.onnx", output=tmp_path_factory.mktemp("bundle") / "vit", name="vit")
