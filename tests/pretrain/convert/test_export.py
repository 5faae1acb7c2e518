"""Out again: every class of transformers that computes what we compute, opened by a process without our code."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AlignConfig,
    AlignModel,
    AutoModel,
    AutoTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    LxmertConfig,
    LxmertForPreTraining,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForMaskedLM,
    VisualBertConfig,
    VisualBertForPreTraining,
)

from pretrain.checkpoint import Checkpoint, load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.models.convert.exporting import export_text, export_transformers
from pretrain.models.convert.probe import Probe
from pretrain.models.interface import ImageInput, TextInput
from pretrain.settings import merge, parse_config
from pretrain.task import Task
from shards.errors import UserError
from tests.parity.weights import distance, shake
from tests.pretrain.convert.folders import VOCABULARY, bring, save_tokenizer
from tests.pretrain.convert.opened import TEXTS

CLOSE = 1e-5  # Measured: at most 5.1e-7.
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = LAYERS | {"vocab_size": VOCABULARY, "max_position_embeddings": 12}
SEEN = LAYERS | {"image_size": 32, "patch_size": 8}
CLIP_ENDS = {"bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 39}
EFFICIENT = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 64}
SIZES = {
    "l_layers": 2,
    "r_layers": 1,
    "x_layers": 2,
    "visual_feat_dim": 10,
    "task_qa": False,
    "task_obj_predict": False,
}

MODELS = {
    "clip": lambda: CLIPModel(CLIPConfig(text_config=WORDS | CLIP_ENDS, vision_config=SEEN, projection_dim=16)),
    "align": lambda: AlignModel(AlignConfig(text_config=WORDS, vision_config=EFFICIENT, projection_dim=320)),
    "blip": lambda: BlipForImageTextRetrieval(
        BlipConfig(
            text_config=WORDS | {"encoder_hidden_size": 32, "bos_token_id": 38},
            vision_config=SEEN,
            image_text_hidden_size=16,
        )
    ),
    "vilt": lambda: ViltForImageAndTextRetrieval(ViltConfig(**WORDS, image_size=32, patch_size=8)),
    "vilt-words": lambda: ViltForMaskedLM(ViltConfig(**WORDS, image_size=32, patch_size=8)),
    "visual-bert": lambda: VisualBertForPreTraining(VisualBertConfig(**WORDS, visual_embedding_dim=10)),
    "lxmert": lambda: LxmertForPreTraining(
        LxmertConfig(**{n: v for n, v in WORDS.items() if n != "num_hidden_layers"}, **SIZES)
    ),
}
CHANGED = {
    "clip": {"logit_scale"},
    "align": {"temperature", "text_model.pooler.dense.weight", "text_model.pooler.dense.bias"},
    "vilt": {"vilt.embeddings.cls_token", "vilt.embeddings.position_embeddings"},
    "vilt-words": {"vilt.embeddings.cls_token", "vilt.embeddings.position_embeddings"},
    "visual-bert": {
        "visual_bert.embeddings.visual_token_type_embeddings.weight",
        "visual_bert.embeddings.visual_position_embeddings.weight",
    },
}
"""What does not come back bit for bit: a logarithm's way there and back; tensors that no output reads; and tensors of
which only a sum is read, which is one of ours."""


def published(name: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    theirs = shake(MODELS[name]())
    if name == "align":
        with torch.no_grad():
            theirs.temperature.fill_(0.5)
    save_tokenizer(folder, *(("<|startoftext|>", "<|endoftext|>") if name == "clip" else ()))
    theirs.save_pretrained(folder)
    return theirs


def images(side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, side, side, 3), generator=generator, dtype=torch.uint8)


def regions() -> ImageInput:
    generator = torch.Generator().manual_seed(2)
    there_BK = torch.arange(5) < torch.tensor([[5], [2]])
    return ImageInput(
        None, torch.randn(2, 5, 10, generator=generator), torch.rand(2, 5, 4, generator=generator), there_BK
    )


def their_regions(name: str) -> dict[str, torch.Tensor]:
    seen = regions()
    if name == "visual-bert":
        return {"visual_embeds": seen.features_BKF, "visual_attention_mask": seen.mask_BK.long()}
    boxes = {"visual_pos": seen.boxes_BK4, "visual_attention_mask": seen.mask_BK.long()}
    return {"visual_feats": seen.features_BKF, **boxes}


def outputs(name: str, ours: Checkpoint) -> dict[str, torch.Tensor]:
    """What the class of transformers calls them."""
    model, task = ours.task.model, ours.task
    text = TextInput(*ours.tokenizer.batch(TEXTS, 12))
    probe = Probe(ours)
    probe.text, probe.image = text, regions() if name in ("visual-bert", "lxmert") else ImageInput(images(side(name)))
    image, words = probe.encoded
    match name:
        case "clip" | "align":
            return {"image_embeds": image.embedding_BE, "text_embeds": words.embedding_BE}
        case "blip":
            return {"itm_score": task.objectives["itm"].head(probe.fused.pooled_BD)}
        case "vilt":
            return {"logits": task.objectives["itm"].score(probe.fused)[:, None]}
    head = task.objectives["mlm"]
    logits = head.logits(probe.fused.text_BLD, model.word_embedding_VD)
    if name == "vilt-words":
        return {"logits": logits}
    heads = {"visual-bert": ("seq_relationship_logits", "pollution"), "lxmert": ("cross_relationship_score", "itm")}
    key, objective = heads[name]
    return {"prediction_logits": logits, key: task.objectives[objective].head(probe.fused.pooled_BD)}


def side(name: str) -> int:
    return 64 if name == "align" else 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Imported, exported, and opened by one fresh process; the folder of each."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    for name, folder in folders.items():
        published(name, folder / "published")
        assert [n for n in bring(folder / "published", folder / "ours").fresh if n not in TEMPERATURE] == []
        apart = export_transformers(load_checkpoint(folder / "ours"), folder / "back", (), overwrite=False)
        assert apart < CLOSE
        given = {"images": images(side(name)), "regions": their_regions(name)}
        torch.save(given, folder / "inputs.pt")
    script = Path(__file__).with_name("opened.py")
    command = [sys.executable, str(script), *(str(folder / "back") for folder in folders.values())]
    subprocess.run(command, check=True, timeout=280, cwd=script.parent)
    return folders


TEMPERATURE = ["objectives.itc.log_temperature"]  # BLIP's class has none


@pytest.mark.parametrize("name", MODELS)
def test_a_process_without_our_code_computes_the_same(exported, name):
    opened = torch.load(exported[name] / "outputs.pt")
    assert opened["missing"] == []
    assert opened["class"] == type(MODELS[name]()).__name__
    ours = load_checkpoint(exported[name] / "ours")
    with torch.no_grad():
        expected = outputs(name, ours)
    mask_BL = ours.tokenizer.batch(TEXTS, 12)[1]
    for key, value in expected.items():
        found = opened[key]
        if key in ("prediction_logits", "logits") and found.ndim == 3:
            found, value = found[:, : mask_BL.shape[1]][mask_BL], value[mask_BL]
        assert distance(found, value) < CLOSE


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_comes_back(exported, name):
    kind, folder = type(MODELS[name]()), exported[name]
    before, after = (kind.from_pretrained(folder / part).state_dict() for part in ("published", "back"))
    assert before.keys() == after.keys()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed <= CHANGED.get(name, set())
    for n in changed & {"logit_scale", "temperature"}:
        assert torch.allclose(before[n], after[n], rtol=1e-6)


def trained(name: str, folder: Path) -> Checkpoint:
    """As if training had moved every weight, those too that theirs does not have."""
    published(name, folder / "published")
    bring(folder / "published", folder / "ours")
    ours = load_checkpoint(folder / "ours")
    shake(ours.task, seed=5)
    return ours


@pytest.mark.parametrize("name", ["align", "blip", "vilt", "visual-bert", "lxmert"])
def test_a_trained_model_goes_out_too(tmp_path, name):
    assert export_transformers(trained(name, tmp_path), tmp_path / "back", (), overwrite=False) < CLOSE


REFUSED = {
    "clip": ({"text": {"pooling": "mean"}}, r"no CLIPModel: `model\.text` \(=clip, mean\) is not clip"),
    "align": ({"image_size": 289}, r"no AlignModel: `model\.image_size` \(=289\) is no multiple of 32"),
    "blip": (
        {"fusion": {"shared_text": False}},
        r"no BlipForImage.*`model\.fusion\.shared_text` \(=false\)",
    ),
    "vilt": ({"fusion": {"types": False}}, r"no ViLT: `model\.fusion\.types` \(=false\) is not true"),
    "visual-bert": ({"vision": {"region": {"box": "box7"}}}, r"no VisualBertForPreTraining: .*without boxes"),
    "lxmert": (
        {"fusion": {"trunk": "encoder_decoder"}},
        r"`model\.fusion\.trunk` \(=encoder_decoder\), and no",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_class_has_is_refused(exported, tmp_path, name):
    changes, expected = REFUSED[name]
    ours = load_checkpoint(exported[name] / "ours")
    values = merge(ours.config.model_dump(mode="json"), {"model": changes})
    other = replace(ours, config=parse_config(PretrainConfig, values))
    with pytest.raises(UserError, match=expected):
        export_transformers(other, tmp_path / "back", (), overwrite=False)
    assert not (tmp_path / "back").exists()


def test_a_head_that_their_class_lacks_must_be_allowed(exported, tmp_path):
    ours = load_checkpoint(exported["vilt-words"] / "ours")
    values = merge(ours.config.model_dump(mode="json"), {"objectives": {"itm": {"negatives": "swap"}}})
    config = parse_config(PretrainConfig, values)
    both = replace(ours, config=config, task=Task(config.model, config.objectives, VOCABULARY).eval())
    with pytest.raises(UserError, match=r"5 tensors have no place \(objectives\.mlm\.bias, .*`allow` by name"):
        export_transformers(both, tmp_path / "back", (), overwrite=False)
    assert export_transformers(both, tmp_path / "back", ("objectives.mlm.*",), overwrite=False) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "align"])
def test_the_text_encoder_alone(exported, tmp_path, name):
    ours = load_checkpoint(exported[name] / "ours")
    export_text(ours, tmp_path / "words", overwrite=False)
    inputs = AutoTokenizer.from_pretrained(tmp_path / "words")(TEXTS, padding=True, return_tensors="pt")
    found = AutoModel.from_pretrained(tmp_path / "words").eval()(**inputs).last_hidden_state
    ids_BL, mask_BL = ours.tokenizer.batch(TEXTS, 12)
    expected = ours.task.model.text(TextInput(ids_BL, mask_BL))[0]
    torch.testing.assert_close(found[mask_BL], expected[mask_BL], rtol=1e-5, atol=1e-6)  # padded there, packed here


def test_a_text_that_is_only_embedded_is_no_encoder(exported, tmp_path):
    with pytest.raises(UserError, match=r"has no text encoder of its own: its text is only embedded"):
        export_text(load_checkpoint(exported["vilt"] / "ours"), tmp_path / "words", overwrite=False)
