"""What tests share: the real test data, and small models."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that DUOSTREAM_TEST_DATA names."""
    place = os.environ.get("DUOSTREAM_TEST_DATA")
    if not place:
        pytest.skip("DUOSTREAM_TEST_DATA is not set: the folder with the real test data")
    return Path(place)
