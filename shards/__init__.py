"""Image-text pairs as WebDataset shards: build, prove, and stream them.

raw pairs -> sources -> write -> *.tar + manifest -> stream -> (identity, sample) in a defined global order
"""
