"""Image-text pairs as WebDataset shards: build, prove, and stream them.

raw pairs -> sources -> write -> *.tar + manifest -> stream -> (identity, sample) in a defined global order
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.stream import ShardStream

__all__ = ["ShardStream"]


def __getattr__(name: str) -> object:
    """Imports the stream, and torch with it, when it is asked for: commands that do without start at once."""
    if name == "ShardStream":
        from shards.stream import ShardStream

        return ShardStream
    raise AttributeError(f"module 'shards' has no attribute '{name}'")
