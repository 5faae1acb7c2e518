"""Tags behind settings: which of them cover what."""

from pretrain.sources import read_sources


def test_a_tag_covers_its_line_or_the_block_under_its_key(tmp_path):
    (tmp_path / "below.yaml").write_text("run: {steps: 3}  # paper-only\ndata: {workers: 1}\n")
    (tmp_path / "a.yaml").write_text(
        """\
base: below.yaml
system: {name: A}
model:  # verified: of the block
  # ours: a comment above a line covers nothing
  image_size: 224
  vision: {name: a, options: {depth: 2}}  # paper-only
  text:  # ours, but
    {kind: bert, pooling: mean}
optim:
  lr: 1e-4  # verified
  betas: [0.9, 0.98]  # about verified
  clip: 1.0
  multipliers: {}  # ours
run: {steps: 4}  # verified-ish
"""
    )
    assert read_sources(tmp_path / "a.yaml") == {
        "data.workers": None,
        "model.image_size": "verified",
        "model.vision.name": "paper-only",
        "model.vision.options.depth": "paper-only",
        "model.text.kind": "ours",
        "model.text.pooling": "ours",
        "optim.lr": "verified",
        "optim.betas": None,
        "optim.clip": None,
        "optim.multipliers": "ours",
        "run.steps": None,
    }
