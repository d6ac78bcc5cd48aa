"""Tests in this folder need a CUDA device; elsewhere they are skipped, and say so."""

import pytest


def pytest_collection_modifyitems(items):
    """Skip every test of this folder where torch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device: run tests/gpu on a machine with one")
        for item in items:
            if "tests/gpu/" in item.nodeid:
                item.add_marker(skip)
