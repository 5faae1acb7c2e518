"""The corpus of the pretraining tests."""

from tests.pretrain.conftest import corpus

__all__ = ["corpus"]
