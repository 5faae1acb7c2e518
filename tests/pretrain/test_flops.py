"""Counted FLOPs against torch's own profiler, which watches the kernels of forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from pretrain.arrange import arrange
from pretrain.batch import Batch
from pretrain.config import EngineConfig, PretrainConfig
from pretrain.devices import peak_flops
from pretrain.engine import Engine, start_process_group
from pretrain.flops import FlopMeter, ProductCount, meter
from pretrain.optim import freeze
from pretrain.task import Task
from pretrain.train import fit
from tests.pretrain.runs import logged
from tests.pretrain.tiny import VOCABULARY, random_batch, region_batch, tiny_config, tiny_joint

DUAL = tiny_config().model.model_dump(mode="json") | {"fusion": {"trunk": "none"}}
MOMENTUM = {"itc": {"targets": "distilled"}, "itm": {}, "mlm": {}, "momentum": {}}


def built(config: PretrainConfig) -> Task:
    torch.manual_seed(0)
    return Task(config.model, config.objectives, VOCABULARY).train()


def counted(task: Task, batch: Batch) -> int:
    found = FlopMeter(task)
    task(batch)["loss"].backward()
    found.close()
    return found.step


def profiled(task: Task, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        task(batch)["loss"].backward()
    return counter.get_total_flops()


CASES = {
    "text queries image": (tiny_config(), random_batch(4)),
    "dual encoder": (tiny_config(objectives={"itc": {}}), random_batch(4)),
    "momentum towers": (tiny_config(objectives=MOMENTUM), random_batch(4)),
    "joint": (tiny_joint({"mlm": {}, "mrf": {}, "itm": {"negatives": "swap"}}), region_batch(4)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_count_is_the_profilers(case):
    config, batch = CASES[case]
    task = built(config)
    # Measured: 0.5 to 1.2 % below, since attention kernels compute their scores again in the backward.
    assert counted(task, batch) == pytest.approx(profiled(task, batch), rel=0.05)


@pytest.mark.parametrize("frozen", ["model.vision.", "model.text."])
def test_what_is_frozen_costs_no_backward_of_its_weights(frozen):
    task = built(tiny_config())
    whole = counted(task, random_batch(4))
    freeze(task, [frozen])
    part = counted(task, random_batch(4))
    assert part < 0.95 * whole
    assert part == pytest.approx(profiled(task, random_batch(4)), rel=0.05)


@pytest.mark.parametrize("engine", [{"accumulation": 2}, {"activation_checkpointing": True}])
def test_what_is_computed_again_counts_once(engine):
    task = built(tiny_config())
    plain = counted(task, random_batch(4))
    arrange(task, EngineConfig(**engine))
    # Measured: 6.6 % more with accumulation, where each call of the trunk makes its keys and values anew.
    assert counted(task, random_batch(4)) == pytest.approx(plain, rel=0.08)
    assert profiled(task, random_batch(4)) > 1.1 * plain


PAIR = {"requires_grad": True}
PRODUCTS = {
    "einsum": lambda: torch.einsum("bse,cte->bcst", torch.ones(2, 3, 4, **PAIR), torch.ones(5, 6, 4, **PAIR)),
    "matmul": lambda: torch.ones(2, 3, 4, **PAIR) @ torch.ones(2, 4, 5),
    "bmm": lambda: torch.bmm(torch.ones(2, 3, 4, **PAIR), torch.ones(2, 4, 5, **PAIR)),
    "addmm": lambda: torch.addmm(torch.ones(5), torch.ones(3, 4), torch.ones(4, 5, **PAIR)),
    "conv2d": lambda: F.conv2d(torch.ones(2, 4, 6, 6), torch.ones(8, 4, 3, 3, **PAIR)),
    "linear": lambda: F.linear(torch.ones(2, 3, 4, **PAIR), weight=torch.ones(5, 4, **PAIR)),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_each_product_by_the_profiler(product):
    with ProductCount() as ours:
        PRODUCTS[product]()
    with FlopCounterMode(display=False) as profiler:
        PRODUCTS[product]().sum().backward()
    assert ours.flops == profiler.get_total_flops()


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_name(name, teraflops):
    assert peak_flops(name) == teraflops * 1e12


@pytest.mark.parametrize("name", ["", "NVIDIA L40", "NVIDIA A1000 Laptop GPU", "Tesla T4"])
def test_an_unknown_device_has_no_peak(name):
    assert peak_flops(name) is None


@pytest.mark.parametrize("zero", range(4))
def test_every_stage_is_counted(zero):
    """At stage 3 a linear layer of DeepSpeed's own stands in place of torch's, and does not stay there."""
    start_process_group()
    config = tiny_config(engine={"zero": zero})
    batch = random_batch(8)
    expected = profiled(built(config), batch)
    engine = Engine(built(config), config)
    found = FlopMeter(engine.task)
    engine.step(batch, lr=1e-3)
    # Measured: as without DeepSpeed.
    assert found.step == pytest.approx(expected, rel=0.05)
    assert F.linear is torch._C._nn.linear


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, from inside the compiler
def test_compiled_blocks_are_counted_before_the_first_step():
    start_process_group()
    config = tiny_config(model=DUAL, objectives={"itc": {}}, engine={"compile": True})
    batch = random_batch(8)
    expected = profiled(built(config), batch)
    engine = Engine(built(config), config)
    assert meter(engine.task, config.engine, engine.flops) is None
    engine.rehearse(batch, batch)
    found = meter(engine.task, config.engine, engine.flops)
    assert found.step == pytest.approx(expected, rel=0.05)


def test_a_run_logs_what_it_computes(configure, tmp_path):
    fit(configure("run.steps=2"))
    assert all(line["tflops"] > 0 for line in logged(tmp_path / "run", timing=True))
