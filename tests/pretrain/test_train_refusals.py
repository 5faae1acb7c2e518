"""What cannot work is refused in one sentence, before a file is written; image weights that fit are used."""

import pytest
import torch
from safetensors.torch import save_file

from pretrain.checkpoint import load_checkpoint
from pretrain.models.vision import ImageEncoder
from pretrain.task import Task
from pretrain.train import fit
from shards.errors import UserError
from tests.pretrain.runs import files
from tests.pretrain.tiny import VOCABULARY

BAD = {
    "optim.freeze=[model.txt.]": r"`optim\.freeze` \(=model\.txt\.\) matches no parameter; names start with .*model",
    "optim.freeze=['']": r"`optim\.freeze` leaves no parameter to train",
    "optim.multipliers={model.txt.: 2}": r"`optim\.multipliers\.model\.txt\.` matches no parameter; names start with",
    "model.fusion.heads=5": r"`model\.fusion\.heads` \(=5\) must divide the width of the text encoder \(=32\)",
    "model.vision.options.num_heads=5": r"`model\.vision\.options` .* is refused by vit_tiny_patch16_224: ",
    "model.vision.options.hedas=5": r"`model\.vision\.options` .* unexpected keyword argument 'hedas'",
    "model.vision.name=vit_tiny_patch16_225": r"is not a timm model; did you mean `vit_tiny_patch16_224`\?",
    "model.vision.weights=absent.safetensors": r"`model\.vision\.weights` \(=absent\.safetensors\) does not exist",
    "model.text.options.hidden_size=33": r"`model\.text\.options` .* is refused by BertModel: ",
    "model.text.options.hiden_size=32": r"`model\.text\.options\.hiden_size` .* did you mean `hidden_size`\?",
    "model.text.options.hidden_act=gellu": r"`model\.text\.options` .* is refused by BertModel: 'gellu'",
    "model.text.options.vocab_size=10": r"`data\.tokenizer` has \d+ tokens, but .* `vocab_size` is 10",
    "model.text.weights=absent": r"`model\.text\.weights` \(=absent\) does not exist",
    "model.text.weights=package:absent/x": r"names a Python package that is not installed: `absent`",
    "data.max_tokens=33": r"`data\.max_tokens` \(=33\) must be at most `max_position_embeddings` \(=32\)",
    "data.group_by=concept": r"`data\.group_by` \(=concept\) is not in the metadata of sample ",
    "data.shards=absent": r"absent",
    "data.shards=": r"`data\.shards`",
    "data.shards=[]": r"`data\.shards`",
    "data.shards=[{place: absent}]": r"absent",
    "data.tokenizer=absent": r"`data\.tokenizer` \(=absent\) does not exist",
    "data.tokenizer=''": r"`data\.tokenizer` is not set",
    "objectives={itc: null, itm: null, mlm: null}": r"`objectives` names none",
    "run.out=''": r"`run\.out` is not set",
}


@pytest.mark.parametrize("override", BAD)
def test_what_cannot_work_is_one_sentence_and_leaves_no_file(configure, tmp_path, override):
    with pytest.raises(UserError, match=BAD[override]) as caught:
        fit(configure(override))
    assert "\n" not in str(caught.value)
    assert files(tmp_path / "run") == []


def test_image_weights_that_do_not_fit_are_refused(configure, tmp_path):
    save_file({"cls_token": torch.zeros(1, 1, 32), "head.weight": torch.zeros(3)}, tmp_path / "half.safetensors")
    whole = ImageEncoder(configure().model.vision, configure().model.image_size).backbone.state_dict()
    save_file(whole | {"cls_token": torch.zeros(1, 1, 7)}, tmp_path / "other.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"no weights")
    for name, message in {
        "half": "does not fit: .* missing",
        "other": r"1 tensors have other shapes, the first is cls_token: \[1, 1, 7\], which must be",
        "noise": "cannot be",
    }.items():
        with pytest.raises(UserError, match=message):
            fit(configure(f"model.vision.weights={tmp_path / name}.safetensors"))
    assert files(tmp_path / "run") == []


def test_image_weights_that_fit_are_used(configure, tmp_path):
    config = configure()
    donor = Task(config.model, config.objectives, VOCABULARY).model.vision.backbone.state_dict()
    save_file(donor, tmp_path / "donor.safetensors")
    found = load_checkpoint(fit(configure(f"model.vision.weights={tmp_path / 'donor.safetensors'}", "run.steps=0")))
    assert all(torch.equal(value, donor[n]) for n, value in found.task.model.vision.backbone.state_dict().items())
    assert found.config.model.vision.weights is None
