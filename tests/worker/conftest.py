"""The real MiniLM encoders, loaded once; the export is kept in the user's own cache between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.models import model
from registry.settings import Settings, load_settings
from worker.encoders.base import Encoder


@pytest.fixture(scope="session")
def real_settings() -> Settings:
    """Settings for real weights, with the default cache."""
    return load_settings(device="cpu")


@pytest.fixture(scope="session")
def minilm_snapshot(real_settings: Settings) -> Path:
    """The directory of the MiniLM weights."""
    from worker.weights import locate

    pytest.importorskip("sentence_transformers")
    return locate(model("all-miniLM-l6"), real_settings).path


@pytest.fixture(scope="session")
def onnx_encoder(real_settings: Settings, minilm_snapshot: Path) -> Encoder:
    """The ONNX entry, exported on first use."""
    from worker.encoders.factory import load_encoder

    return load_encoder("qdrant-minilm-onnx", "", real_settings, ["dense"])


@pytest.fixture(scope="session")
def torch_encoder(real_settings: Settings, minilm_snapshot: Path) -> Encoder:
    """The sentence-transformers entry."""
    from worker.encoders.factory import load_encoder

    return load_encoder("all-miniLM-l6", "", real_settings, ["dense"])


@pytest.fixture(scope="session")
def plain_model(minilm_snapshot: Path) -> Any:
    """Upstream's own way to embed, with nothing of ours."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(minilm_snapshot), device="cpu")
    loaded.max_seq_length = 256
    return loaded
