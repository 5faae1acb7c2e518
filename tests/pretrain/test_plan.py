"""What `pretrain plan` says, against runs, arithmetic, and torch's own counters."""

import json
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import PretrainConfig
from pretrain.devices import GPUS
from pretrain.muon import Muon
from pretrain.planning.batch import largest_batch
from pretrain.planning.memory import FLOAT, memory, partition
from pretrain.planning.optimizer import grouped, products, temporary
from pretrain.planning.plan import advice, check_split, make_plan
from pretrain.planning.sources import Corpus, read_bank, read_vocabulary
from pretrain.planning.speed import Cluster, checkpoint_bytes, sent, speed
from pretrain.planning.step import entries, imagine
from pretrain.settings import merge, parse_config
from pretrain.task import Task
from pretrain.train import fit
from shards.errors import UserError
from tests.pretrain.memory import most_held
from tests.pretrain.runs import files
from tests.pretrain.tiny import VOCABULARY, tiny_config, tiny_joint
from tests.ranks import ROOT, run_module

CORPUS = Corpus(VOCABULARY)
CLUSTER = Cluster(
    nodes=2,
    gpus=4,
    flops=1e15,
    flops_bf16=1e15,
    mfu=0.5,
    memory=80e9,
    bandwidth=1e12,
    link=400e9,
    network=50e9,
    disk=1e9,
    sample=1e5,
)


def changed(**changes: object) -> PretrainConfig:
    return parse_config(PretrainConfig, merge(tiny_config().model_dump(), changes))


def alone(**changes: object) -> Cluster:
    return Cluster(**vars(CLUSTER) | {"nodes": 1, "gpus": 1} | changes)


def test_what_a_step_keeps_is_what_autograd_saves():
    """Saved storages of a real step; what the trace adds are the outputs that the loss holds."""
    config = tiny_config(objectives={"itc": {}})
    task, found = Task(config.model, config.objectives, VOCABULARY).train(), {}
    batch = largest_batch(config, 8).each(lambda x: x.clone())
    own = {x.untyped_storage().data_ptr() for x in (*task.parameters(), *task.buffers())}
    own |= {x.untyped_storage().data_ptr() for x in vars(batch).values() if x is not None}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        loss = task(batch)["loss"]
    trace = imagine(config, CORPUS, on="cpu").trace
    held = trace.timeline()[trace.forward]
    # Measured: 0.6 % more in the trace (inputs of views, scalars).
    assert held["activations"] + held["gathered"] == pytest.approx(sum(found.values()), rel=0.03)
    assert loss.requires_grad


def test_nothing_is_allocated_for_a_model_that_no_machine_holds():
    huge = {"hidden_size": 65536, "num_hidden_layers": 2, "num_attention_heads": 64, "intermediate_size": 262144}
    config = changed(
        model={"text": {"options": huge}, "fusion": {"trunk": "none"}}, objectives={"itm": None, "mlm": None}
    )
    step = imagine(config, CORPUS)
    assert step.trained > 5e10
    assert memory(config, step, 1).peak > 16 * 5e10


@pytest.mark.parametrize("zero", range(4))
def test_what_each_stage_holds_by_hand(zero):
    none_whole = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    config = changed(engine={"zero": zero, "deepspeed": none_whole if zero == 3 else {}})
    step = imagine(config, CORPUS)
    shares, n = partition(config, step, 4), step.trained
    quarter = FLOAT * -(-n // 4)
    assert shares.moments == (2 * FLOAT * n if zero == 0 else 2 * quarter)
    assert shares.master == (0 if zero == 0 else quarter)
    assert shares.own == (FLOAT * n if zero == 0 else quarter)
    assert shares.bucket == (0 if zero == 0 else FLOAT * 5e8)
    assert shares.fetched == (FLOAT * n if zero == 3 else 0)
    if zero < 3:
        assert shares.weights == FLOAT * n


def test_what_is_sent_by_hand():
    step = imagine(changed(), CORPUS)
    n, ring = FLOAT * step.trained, 7 / 8
    found = {zero: sent(changed(engine={"zero": zero}), step, 8) for zero in range(4)}
    assert found[0]["gradients"] == 2 * ring * n
    assert found[2] == found[1] == found[0] | {"new weights": ring * n}
    assert found[3]["gradients"] == ring * n
    assert sent(changed(), step, 1) == {}


@pytest.mark.parametrize("saving", [{"activation_checkpointing": True}, {"accumulation": 4}])
def test_what_is_computed_again_is_not_kept_and_costs_products(saving):
    plain, sparing = (imagine(changed(engine=engine), CORPUS) for engine in ({}, saving))
    kept = [step.trace.timeline()[step.trace.forward]["activations"] for step in (plain, sparing)]
    assert kept[1] < 0.8 * kept[0]
    assert sparing.trace.flops > 1.1 * plain.trace.flops
    # Measured: 4.8 % more with accumulation, where each call of the trunk makes its keys and values anew.
    assert sparing.model_flops == pytest.approx(plain.model_flops, rel=0.06)


def test_offload_moves_the_optimizer_to_the_host():
    config = changed(engine={"zero": 2, "offload": "optimizer"})
    step = imagine(config, CORPUS)
    plan, here = memory(config, step, 2), memory(changed(engine={"zero": 2}), step, 2)
    assert plan.host["optimizer"] == here.parts["optimizer"]
    assert plan.parts["optimizer"] == 0
    assert plan.peak < here.peak


@pytest.mark.parametrize(("shape", "orthogonal"), [((192, 768), True), ((640, 64, 3, 3), True), ((300, 400), False)])
def test_what_muon_needs_for_a_while_is_what_is_allocated(shape, orthogonal):
    weight = torch.nn.Parameter(torch.randn(shape))
    optimizer = Muon([{"params": [weight], "matrices": orthogonal}], lr=0.1)
    weight.grad = torch.randn(shape)
    optimizer.step()  # makes the moments
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each brings room of its own to a product on a CPU, 90 kB
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    groups = grouped(optimizer.param_groups)
    assert groups[0].remembered * weight.numel() == sum(x.numel() for x in optimizer.state[weight].values() if x.ndim)
    # Measured: 2 % more where rows and columns are about as many, else 0.1 %.
    assert FLOAT * temporary("muon", 0.0, groups, 0, gpu=True) == pytest.approx(most_held(profiler, []), rel=0.03)


def test_muons_products_are_those_that_torch_counts():
    shapes = [(48, 20), (16, 4, 3, 3), (30, 30)]
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = Muon([{"params": weights, "matrices": True}, {"params": [torch.nn.Parameter(torch.ones(9))]}], lr=0.1)
    for weight in weights:
        weight.grad = torch.randn(weight.shape)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert products(grouped(optimizer.param_groups)) == counter.get_total_flops()


def test_the_time_of_an_update_by_hand():
    config = changed(optim={"name": "muon", "by_adamw": ["model.text."]})
    step, quick = imagine(config, CORPUS), alone(bandwidth=1e30, flops_bf16=1e30)
    matrices = sum(len(group.shapes) for group in step.groups if group.matrices)
    vectors = sum(len(group.shapes) for group in step.groups if not group.matrices)
    assert speed(config, step, quick).optimizer == pytest.approx(6e-6 * (50 * matrices + 11 * vectors))
    adamw = changed(engine={"zero": 2}, data={"workers": 10**9})
    step = imagine(adamw, CORPUS)
    found, plain = (speed(adamw, step, replace(CLUSTER, bandwidth=bandwidth)) for bandwidth in (1e12, 1e30))
    assert found.optimizer == pytest.approx(23 * 4 * step.trained / 8 / 1e12)
    assert found.step - plain.step == pytest.approx(found.optimizer, rel=1e-6)


def test_what_is_frozen_has_no_gradients_and_no_moments():
    config = changed(optim={"freeze": ["model.text."]})
    step, task = imagine(config, CORPUS), Task(config.model, config.objectives, VOCABULARY)
    frozen = sum(p.numel() for p in task.model.text.parameters())
    assert step.whole == sum(p.numel() for p in task.parameters())
    assert step.trained == step.whole - frozen
    assert step.moments == 2 * step.trained
    shares = partition(config, step, 1)
    assert (shares.weights, shares.own) == (FLOAT * step.whole, FLOAT * step.trained)
    assert step.trace.gradients()[-1] == FLOAT * step.trained


def test_the_bank_is_counted_as_it_is_read(configure):
    config = configure("objectives={bank: {}}", "optim.freeze=[model.text.]", "data.captions=one")
    texts, groups = read_bank(config, None)
    assert groups == 64  # scenes, each a group of its own
    assert read_bank(config, (5, 2)) == (5, 2)
    assert read_bank(configure(), None) == (0, 0)
    step = imagine(config, Corpus(300, bank=(texts, groups)))
    less = imagine(config, Corpus(300, bank=(texts - 10, groups)))
    assert step.buffers - less.buffers == 10 * 32 * FLOAT
    with pytest.raises(UserError, match=r"`data\.shards` \(=away\) is not here: say how many texts and groups"):
        read_bank(configure("objectives={bank: {}}", "data.shards=away"), None)


def test_a_bank_whose_texts_are_trained_is_refused_as_by_a_run():
    with pytest.raises(UserError, match=r"`objectives\.bank` reads each text once"):
        imagine(changed(objectives={"bank": {}}), Corpus(VOCABULARY, bank=(9, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["optim.name=muon", "optim.freeze=[model.text.]"],
        ["optim.ema=0.9"],
        ["engine.zero=2", "optim.freeze=[model.text.]"],
        ["engine.zero=3"],
    ],
)
def test_the_size_of_a_checkpoint(configure, settings):
    config = configure("run.steps=1", *settings)
    written = sum(file.stat().st_size for file in fit(config).rglob("*") if file.is_file())
    planned = checkpoint_bytes(config, imagine(config, Corpus(read_vocabulary(config, None))))
    assert 0 <= written - planned < 150_000  # measured: 60,000 to 120,000, of names, tokenizer and random state


@pytest.mark.long
@pytest.mark.slow
def test_the_speed_of_a_published_run():
    """CLIP ViT-B/32 on 128 A100, 256 pairs each: 93,294 samples/s (arXiv:2212.07143, trained_models_info.csv)."""
    ended = run_module(
        "pretrain.cli",
        *("plan", "--config", ROOT / "configs/systems/clip.yaml", "--nodes", "32", "--gpus", "4", "--gpu", "a100"),
        *("--network", "25", "--json", "engine.precision=bf16", "data.workers=8"),
    )
    assert ended.status == [0], ended.stderr
    # Measured: 103,000 at the assumed share of the peak, which other published runs of that series decided with it.
    assert json.loads(ended.stdout[0])["samples_per_second"] == pytest.approx(93_294, rel=0.2)


def test_a_plan_by_hand():
    config = changed(data={"global_batch": 16}, run={"steps": 1000, "save_every": 100})
    plan = make_plan(config, Corpus(VOCABULARY, shards=12), alone())
    step = imagine(config, CORPUS)
    assert plan.products == pytest.approx(step.trace.flops / 0.5e15)
    assert plan.data == 16 / 1000
    assert plan.step == max(plan.products + plan.optimizer, plan.data)
    assert plan.samples_per_second == pytest.approx(16 / plan.step)
    assert plan.gpu_hours == pytest.approx((1000 * plan.step + 10 * plan.stalled) / 3600)
    assert plan.stalled == pytest.approx(plan.checkpoint_bytes / 25e9)  # in the background
    waiting = changed(data={"global_batch": 16}, run={"steps": 1000, "save_every": 100, "async_save": False})
    assert make_plan(waiting, CORPUS, alone()).stalled == plan.checkpoint == plan.checkpoint_bytes / 1e9
    slow = make_plan(config, CORPUS, alone(disk=1e4))
    assert slow.stalled == pytest.approx(slow.checkpoint - 100 * slow.step, rel=1e-3)
    assert plan.days * 24 == pytest.approx(plan.gpu_hours)
    assert plan.shards_per_rank == 12
    assert plan.reading == pytest.approx(plan.samples_per_second * 1e5)


def test_steps_that_train_one_of_several_are_weighed():
    config = tiny_joint({"mlm": {}, "itm": {"negatives": "swap"}, "policy": "one", "mix": {"mlm": 3, "itm": 1}})
    assert entries(config) == {"mlm": 0.75, "itm": 0.25}
    mlm, itm = (imagine(config, CORPUS, entry=entry) for entry in entries(config))
    plan = make_plan(config, CORPUS, alone())
    assert plan.products == pytest.approx((0.75 * mlm.trace.flops + 0.25 * itm.trace.flops) / 0.5e15)
    assert plan.memory.peak == max(memory(config, step, 1).peak for step in (mlm, itm))


@pytest.mark.long
def test_the_advice_fits():
    config = changed(data={"global_batch": 64})
    peak = make_plan(config, CORPUS, alone()).memory.peak
    small = alone(memory=0.7 * peak)
    settings, then = advice(config, CORPUS, small)
    engine = dict(setting.removeprefix("engine.").split("=") for setting in settings)
    assert then <= 0.7 * peak
    assert make_plan(changed(data={"global_batch": 64}, engine=engine), CORPUS, small).fits
    assert advice(config, CORPUS, alone(memory=1.0)) is None


@pytest.mark.parametrize(
    ("changes", "world", "sentence"),
    [
        ({"data": {"global_batch": 10}}, 4, r"`global_batch` \(=10\) must be divisible by `--nodes` x `--gpus` \(=4\)"),
        ({"engine": {"accumulation": 3}}, 2, r"`engine.accumulation` \(=3\) must divide each rank's part"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(changes, world, sentence):
    with pytest.raises(UserError, match=sentence):
        check_split(changed(**changes), world)


@pytest.mark.slow
def test_the_command(corpus, tmp_path):
    """In one process of its own, as its group of ranks must be: imagined ranks, and one line for what does not fit."""
    ended = run_module("pretrain.cli", "plan", "--config", corpus.config, "--nodes", "2", "--gpus", "2", "--json")
    assert ended.status == [0], ended.stderr
    told = json.loads(ended.stdout[0])
    assert told["world"] == 4
    assert told["shards_per_rank"] == 0.5
    assert told["fits"]
    assert set(told["sent"]) == {"features gathered", "gradients"}
    assert told["memory"]["parts"]["gathered"] > 0
    assert told["memory"]["peak"] == max(told["memory"]["moments"].values())
    assert told["available"] == GPUS["h100"].memory
    assert files(tmp_path) == []


@pytest.mark.long
@pytest.mark.slow
def test_the_command_for_people(corpus):
    ended = run_module("pretrain.cli", "plan", "--config", corpus.config, "--gpus", "1", "--memory", "0.001")
    assert ended.status == [0], ended.stderr
    assert " GB do not fit into 0.001 GB" in ended.stdout[0]
    assert "samples/s" in ended.stdout[0]
    unknown = run_module("pretrain.cli", "plan", "--config", corpus.config, "--gpu", "h10")
    assert unknown.status == [2]
    assert unknown.stderr[0].startswith("error: `--gpu` (=h10) is not known")
