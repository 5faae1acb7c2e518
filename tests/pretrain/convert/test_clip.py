"""CLIP in and out: the libraries' own classes compute what our checkpoint computes."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from pretrain.checkpoint import load_checkpoint
from pretrain.cli import main
from pretrain.models.convert.exporting import export_transformers
from pretrain.models.convert.exporting_open_clip import export_open_clip
from pretrain.models.convert.importing import FORMATS
from pretrain.models.interface import ImageInput, TextInput
from shards.errors import UserError
from tests.parity.weights import distance, shake
from tests.pretrain.convert.folders import VOCABULARY, bring, noise, save_clip, save_tokenizer, texts

CLOSE = 1e-5  # Measured: at most 6e-7.


def embeddings(checkpoint):
    ids_BL, mask_BL = texts(checkpoint)
    model = checkpoint.task.model
    with torch.no_grad():
        image, text = model.encode_image(ImageInput(noise())), model.encode_text(TextInput(ids_BL, mask_BL))
    return image.embedding_BE, text.embedding_BE


def pixels(vision):
    return ((noise().float() - vision.mean) / vision.std).permute(0, 3, 1, 2)


@torch.no_grad()
def theirs_of(model, checkpoint):
    ids_BL, mask_BL = texts(checkpoint)
    normal_BCHW = pixels(checkpoint.task.model.vision)
    found = model(input_ids=ids_BL, attention_mask=mask_BL.long(), pixel_values=normal_BCHW)
    return found.image_embeds, found.text_embeds


def test_transformers_there_and_back(tmp_path):
    theirs = save_clip(tmp_path / "published")
    imported = bring(tmp_path / "published", tmp_path / "ours")
    assert imported.fresh == []
    ours = load_checkpoint(tmp_path / "ours")
    for found, expected in zip(embeddings(ours), theirs_of(theirs, ours), strict=True):
        assert distance(found, expected) < CLOSE
    scale = float(theirs.logit_scale.detach())
    assert float(ours.task.objectives["itc"].log_temperature.detach()) == pytest.approx(-scale)

    assert export_transformers(ours, tmp_path / "back", (), overwrite=False) < CLOSE
    back = CLIPModel.from_pretrained(tmp_path / "back")
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    for found, expected in zip(theirs_of(back, ours), embeddings(ours), strict=True):
        assert distance(found, expected) < CLOSE


def test_exported_folder_reads_images_and_texts_as_we_do(tmp_path):
    save_clip(tmp_path / "published")
    bring(tmp_path / "published", tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours")
    export_transformers(ours, tmp_path / "back", (), overwrite=False)
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "back")
    found = processor(images=list(noise().numpy()), return_tensors="pt")["pixel_values"]
    assert distance(found, pixels(ours.task.model.vision)) < CLOSE
    words = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert words("w5 w6")["input_ids"] == ours.tokenizer.encode("w5 w6", 12).ids_L.tolist()


@torch.no_grad()
@pytest.mark.parametrize("pickled", [False, True])
def test_open_clip(tmp_path, pickled):
    shape = {"layers": 2, "width": 32, "mlp_ratio": 2.0}
    vision = {"image_size": 32, "patch_size": 8, "head_width": 8, **shape}
    text = {"context_length": 12, "vocab_size": VOCABULARY, "heads": 4, **shape}
    theirs = shake(open_clip.CLIP(16, vision, text, quick_gelu=True))
    source = tmp_path / "published"
    save_tokenizer(source, "<|startoftext|>", "<|endoftext|>")
    settings = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (source / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    if pickled:
        torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, source / "open_clip_pytorch_model.bin")
    else:
        save_file(theirs.state_dict(), source / "open_clip_model.safetensors")
    assert bring(source, tmp_path / "ours", "open_clip").fresh == []
    ours = load_checkpoint(tmp_path / "ours")
    ids_BL, mask_BL = texts(ours)
    image_BE, text_BE = embeddings(ours)
    ids_BL = torch.nn.functional.pad(torch.where(mask_BL, ids_BL, 0), (0, 12 - ids_BL.shape[1]))
    assert distance(image_BE, theirs.encode_image(pixels(ours.task.model.vision), normalize=True)) < CLOSE
    assert distance(text_BE, theirs.encode_text(ids_BL, normalize=True)) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("quick", [False, True])
def test_open_clip_opens_what_we_write(tmp_path, quick):
    shape = {"layers": 2, "width": 32, "mlp_ratio": 2.0}
    vision = {"image_size": 32, "patch_size": 8, "head_width": 8, **shape}
    text = {"context_length": 12, "vocab_size": VOCABULARY, "heads": 4, **shape}
    theirs = shake(open_clip.CLIP(16, vision, text, quick_gelu=quick))
    source = tmp_path / "published"
    save_tokenizer(source, "<|startoftext|>", "<|endoftext|>")
    settings = {"embed_dim": 16, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text}
    (source / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    save_file(theirs.state_dict(), source / "open_clip_model.safetensors")
    bring(source, tmp_path / "ours", "open_clip")
    ours = load_checkpoint(tmp_path / "ours")
    export_open_clip(ours, tmp_path / "back", (), overwrite=False)
    before = load_file(source / "open_clip_model.safetensors")
    after = load_file(tmp_path / "back/open_clip_model.safetensors")
    assert before.keys() == after.keys()
    assert {n for n in before if not torch.equal(before[n], after[n])} <= {"logit_scale"}
    assert torch.allclose(before["logit_scale"], after["logit_scale"], rtol=1e-6)
    name = f"local-dir:{tmp_path / 'back'}"
    back, _, preprocess = open_clip.create_model_and_transforms(name)
    words = open_clip.get_tokenizer(name)
    pictures = torch.stack([preprocess(Image.fromarray(one)) for one in noise().numpy()])
    image_BE, text_BE = embeddings(ours)
    assert distance(back.eval().encode_image(pictures, normalize=True), image_BE) < CLOSE
    said = back.encode_text(words(["w5 w6 w7 w8 w9", "w10", "w11 w12"]), normalize=True)
    assert distance(said, text_BE) < CLOSE


def test_sharded_weights_are_the_same_weights(tmp_path):
    theirs = save_clip(tmp_path / "whole")
    save_tokenizer(tmp_path / "sharded", "<|startoftext|>", "<|endoftext|>")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert not (tmp_path / "sharded/model.safetensors").exists()
    for name in ("whole", "sharded"):
        bring(tmp_path / name, tmp_path / f"{name}-ours")
    whole, sharded = (load_file(tmp_path / f"{name}-ours/model.safetensors") for name in ("whole", "sharded"))
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    source = tmp_path / "published"
    save_clip(source)
    tensors = load_file(source / "model.safetensors")
    tensors["classifier.weight"] = torch.zeros(3)
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]  # older files have it: ignored by name
    del tensors["visual_projection.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match=r"1 tensors have no place \(classifier\.weight\) and 1 are missing"):
        bring(source, tmp_path / "ours")
    with pytest.raises(UserError, match=r"1 are missing \(model\.image_projection\.weight\)"):
        bring(source, tmp_path / "ours", allow=("classifier.*",))
    with pytest.raises(UserError, match=r"`allow` \(=classifer\.\*\) is the name of no tensor"):
        bring(source, tmp_path / "ours", allow=("classifer.*",))
    assert not (tmp_path / "ours").exists()
    allowed = ("classifier.*", "model.image_projection.weight")
    assert bring(source, tmp_path / "ours", allow=allowed).fresh == ["model.image_projection.weight"]


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    source = tmp_path / "published"
    save_clip(source)
    tensors = load_file(source / "model.safetensors")
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"].T.contiguous()
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match=r"must have shape \[16, 32\], not \[32, 16\]"):
        bring(source, tmp_path / "ours")


def test_other_pixels_without_a_bias_are_refused(tmp_path):
    source = tmp_path / "published"
    save_clip(source)
    said = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (source / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"its first layer has no bias"):
        bring(source, tmp_path / "ours")


def test_the_commands(tmp_path, capsys):
    save_clip(tmp_path / "published")
    names = [f"{tmp_path}/{name}" for name in ("published", "ours", "back")]
    commands = {
        "checkpoint: ": ["import", "--from", names[0], "--out", names[1]],
        "outputs differ by at most": ["export", "--ckpt", names[1], "--out", names[2]],
        "read back as it was": ["export", "--format", "open_clip", "--ckpt", names[1], "--out", f"{tmp_path}/open"],
        "the text encoder, as it is": ["export", "--part", "text", "--ckpt", names[1], "--out", f"{tmp_path}/text"],
    }
    for answer, words in commands.items():
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert answer in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["import", "--format", "transformer", "--from", names[0], "--out", f"{tmp_path}/other"])
    assert ended.value.code == 2
    expected = f"error: `format` (=transformer) must be one of {', '.join(FORMATS)}\n"
    assert expected in capsys.readouterr().err
    for words, rule in (
        (["--format", "onnx"], "`format` (=onnx) must be transformers or open_clip"),
        (["--part", "image"], "`part` (=image) must be all, or text"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["export", "--ckpt", names[1], "--out", f"{tmp_path}/none", *words])
        assert ended.value.code == 2
        assert rule in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(commands["checkpoint: "])
    assert ended.value.code == 2
    assert "must not exist yet; replace it with --overwrite" in capsys.readouterr().err


def test_a_configuration_without_what_it_needs(tmp_path):
    save_tokenizer(tmp_path / "published")
    (tmp_path / "published/open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}}}')
    save_file({"a": torch.zeros(1)}, tmp_path / "published/open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"has a configuration that cannot be read: 'embed_dim'"):
        bring(tmp_path / "published", tmp_path / "ours", "open_clip")


def test_an_unknown_architecture_is_named(tmp_path):
    save_tokenizer(tmp_path / "published")
    (tmp_path / "published/config.json").write_text('{"model_type": "blip-2"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "published/model.safetensors")
    with pytest.raises(UserError, match=r"`model_type` \(=blip-2\), known are align, clip, .*; did you mean `blip`"):
        bring(tmp_path / "published", tmp_path / "ours")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "holds none of model"), (b"half", "cannot be read"), ("index", "names 1 tensors that its files lack")],
)
def test_weights_that_are_not_there_or_damaged(tmp_path, content, reason):
    source = tmp_path / "published"
    save_clip(source)
    file = source / "model.safetensors"
    if content == "index":
        file.rename(source / "part.safetensors")
        weights = dict.fromkeys([*load_file(source / "part.safetensors"), "lost"], "part.safetensors")
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    elif content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        bring(source, tmp_path / "ours")
