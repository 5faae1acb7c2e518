"""Initial weights and tokenizers on a hub: fetched once before anything is built, then read from the cache alone."""

import socket
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as save
from transformers import BertConfig, BertModel

from pretrain.checkpoint import load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.fetching import fetch_weights
from pretrain.models.config import VisionConfig
from pretrain.models.vision import ImageEncoder
from pretrain.planning.sources import Corpus, read_vocabulary
from pretrain.planning.step import imagine
from pretrain.settings import load_config
from pretrain.task import Task, outline
from pretrain.train import fit
from shards.errors import Stopped, UserError
from tests.hub import Repository, hub
from tests.pretrain.tiny import VOCABULARY

COMMIT, EARLIER = "c" * 40, "b" * 40
TIMM = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"  # the default tag of the tiny configuration's model
OPTIONS = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
HUB_IDS = (
    "model.text.weights=hf:ada/words",
    "model.vision.weights=timm",
    "model.fusion.weights=hf:ada/words@" + EARLIER,
    "model.fusion.hidden=64",
    "data.tokenizer=hf:ada/words",
)
NO_NETWORK = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a BERT of one layer, as transformers saves it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("words")
    config = BertConfig(vocab_size=300, max_position_embeddings=32, initializer_range=0.3, **TEXT)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The file of a timm ViT that was trained on images of 64 pixels, with a classifier."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("vit") / "model.safetensors"
    save(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7, **OPTIONS).state_dict(), path)
    return path


@pytest.fixture
def server(corpus, words, vit, tmp_path, monkeypatch):
    """A hub with both and the corpus's tokenizer, and an empty cache."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    files = {name: (words / name).read_bytes() for name in ("config.json", "model.safetensors")}
    files |= {"tokenizer.json": corpus.tokenizer.read_bytes(), "pytorch_model.bin": b"a pickle"}
    with hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.repositories["ada/words"] = Repository(False, [(EARLIER, files), (COMMIT, files)])
        server.repositories[TIMM] = Repository(False, [(COMMIT, {"model.safetensors": vit.read_bytes()})])
        server.repositories["ada/pickled"] = Repository(
            False, [(COMMIT, {"config.json": b"{}", "pytorch_model.bin": b""})]
        )
        yield server


def refuse_connections(monkeypatch) -> list[object]:
    """From here on no connection is made; where one was wanted is listed."""
    wanted: list[object] = []

    def refuse(*address, **_):
        wanted.append(address)
        raise OSError("no network")

    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    return wanted


def test_a_run_starts_from_what_lies_on_a_hub(server, configure, words, vit, tmp_path, monkeypatch):
    frozen = "optim.freeze=[model.text.bert., model.vision.backbone., model.fusion.]"
    config = configure(*HUB_IDS, frozen, "run.steps=1")
    found = load_checkpoint(fit(config))
    model, theirs = found.task.model, load_file(words / "model.safetensors")
    assert torch.equal(model.text.bert.embeddings.word_embeddings.weight, theirs["embeddings.word_embeddings.weight"])
    query = theirs["encoder.layer.0.attention.self.query.weight"]
    assert torch.equal(model.text.bert.encoder.layer[0].attention.self.query.weight, query)
    assert torch.equal(model.fusion.blocks[0].self_attention.query.weight, query)
    assert torch.equal(model.vision.backbone.blocks[0].attn.qkv.weight, load_file(vit)["blocks.0.attn.qkv.weight"])
    parts = found.config.model
    assert (parts.text.weights, parts.vision.weights, parts.fusion.weights) == (None, None, None)

    kept = load_config(PretrainConfig, tmp_path / "run" / "config.yaml")
    assert (kept.model.text.weights, kept.data.tokenizer) == (f"hf:ada/words@{COMMIT}",) * 2
    assert kept.model.vision.weights == f"hf:{TIMM}@{COMMIT}"
    assert kept.model.fusion.weights == f"hf:ada/words@{EARLIER}"
    assert server.count("pytorch_model.bin") == 0
    assert server.count("GET .*words/resolve/.*/tokenizer.json") == 1

    monkeypatch.setenv("HF_ENDPOINT", NO_NETWORK)
    assert load_checkpoint(fit(configure(*HUB_IDS, frozen, "run.steps=2", "run.resume=auto"))).step == 2


@pytest.mark.parametrize(
    "setting",
    [
        "model.text.weights=hf:ada/words",
        "model.vision.weights=hf:ada/vit",
        "model.vision.weights=timm",
        "model.fusion.weights=hf:ada/words",
        "data.tokenizer=hf:ada/words@" + COMMIT,
    ],
)
def test_what_is_not_fetched_is_refused_without_a_connection(server, configure, monkeypatch, setting):
    wanted, config, name = refuse_connections(monkeypatch), configure(setting), setting.partition("=")[0]
    with pytest.raises(UserError, match=rf"`{name}` \(=hf:.*\) is not in the hub's cache; .* fetches it$"):
        Task(config.model, config.objectives, len(Tokenizer(config.data.tokenizer)))
    assert wanted == server.requests == []


def test_what_is_fetched_is_built_without_a_connection(server, configure, monkeypatch):
    config = fetch_weights(configure(*HUB_IDS))
    asked, wanted = len(server.requests), refuse_connections(monkeypatch)
    Task(config.model, config.objectives, len(Tokenizer(config.data.tokenizer)))
    assert fetch_weights(config) == config, "commits that are here need no hub"
    assert wanted == []
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.text.weights=hf:ada/none", r"`model\.text\.weights` \(=ada/none@main\) is neither here nor on the hub"),
        ("model.text.weights=hf:ada/words@v9", r"`model\.text\.weights` .* has no such revision"),
        ("model.text.weights=hf:words", r"`model\.text\.weights` \(=hf:words\) must have the form hf:USER/NAME"),
        ("model.text.weights=hf:ada/pickled", r"is a repository without model\.safetensors; pickles are not read"),
        ("model.fusion.weights=hf:ada/pickled", r"is a repository without model\.safetensors; pickles are not read"),
        ("model.vision.weights=hf:ada/pickled", r"is a repository without model\.safetensors; pickles are not read"),
        (
            "data.tokenizer=hf:ada/pickled",
            r"`data\.tokenizer` \(=hf:ada/pickled\) is a repository without tokenizer\.json",
        ),
        ("model.vision={weights: timm, name: no_such}", r"`model\.vision\.name` \(=no_such\) is not a timm model"),
        ("model.vision={weights: timm, name: resnet18.x}", r"is refused by timm: Invalid pretrained tag \(x\)"),
        ("model.vision={weights: timm, name: vit_base_patch16_gap_224}", r"timm has no safetensors of vit_base_patch"),
    ],
)
def test_what_a_hub_does_not_have_is_one_sentence(server, configure, tmp_path, setting, message):
    with pytest.raises(UserError, match=message) as caught:
        fit(configure(setting))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_hub_that_does_not_answer_stops_the_run(server, configure, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NO_NETWORK)
    with pytest.raises(Stopped, match=r"^ada/words@main could not be fetched: ") as caught:
        fit(configure(*HUB_IDS))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_local_places_ask_no_hub(server, configure, words, vit):
    config = configure(f"model.text.weights={words}", f"model.vision.weights={vit}", "model.fusion.weights=null")
    assert fetch_weights(config) == config
    assert server.requests == []


def test_a_checkpoint_brings_its_own_tokenizer(server, configure):
    config = configure("data.tokenizer=hf:ada/words")
    assert fetch_weights(config, tokenizer=False) == config
    assert server.requests == []


def test_a_plan_fetches_nothing(server, configure):
    plain, config = configure(), configure(*HUB_IDS[1:3], "data.tokenizer=hf:ada/words")
    expected = [p.numel() for p in outline(plain.model, plain.objectives, VOCABULARY).parameters()]
    assert sum(imagine(config, Corpus(VOCABULARY)).elements) == sum(expected)
    with pytest.raises(UserError, match=r"`data\.tokenizer` \(=hf:ada/words\) is not here"):
        read_vocabulary(config, None)
    assert server.requests == []


def test_a_plan_reads_what_is_fetched(server, configure):
    config = configure("data.tokenizer=hf:ada/words")
    assert (
        read_vocabulary(fetch_weights(config), None)
        == read_vocabulary(config, None)
        == len(Tokenizer(configure().data.tokenizer))
    )


def test_processes_of_a_node_download_once(server, configure):
    config = configure(*HUB_IDS)
    with ThreadPoolExecutor(4) as ranks:  # the cache's locks are of files, opened by each thread anew
        found = list(ranks.map(fetch_weights, [config] * 4))
    assert found == found[:1] * 4
    assert server.count(rf"GET /ada/words/resolve/{COMMIT}/model\.safetensors") == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", OPTIONS),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}),
        ("resnet10t", {"channels": [8, 16, 24, 32]}),
    ],
)
def test_weights_of_another_image_size_are_loaded_as_timm_loads_them(tmp_path, name, options):
    sized = {} if name.startswith("resnet") else {"img_size": 64}
    path = tmp_path / "model.safetensors"
    save(timm.create_model(name, num_classes=7, **sized, **options).state_dict(), path)
    found = ImageEncoder(VisionConfig(name=name, options=options, weights=str(path)), 32).backbone.state_dict()
    sized = dict.fromkeys(sized, 32)
    expected = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=0, **sized, **options
    ).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
