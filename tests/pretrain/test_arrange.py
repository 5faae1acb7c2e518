"""Memory and precision: recomputed blocks, compiled blocks, float16 and offloading change nothing but what they say."""

import pytest
import torch
from torch import Tensor

from pretrain.arrange import arrange
from pretrain.config import EngineConfig, PretrainConfig
from pretrain.engine import Engine, start_process_group
from pretrain.models.config import FusionConfig
from pretrain.precision import LossScale
from pretrain.settings import merge, parse_config
from pretrain.stacks import blocks
from pretrain.stepped import NonFinite
from pretrain.task import Task
from pretrain.train import check
from shards.errors import UserError
from tests.pretrain.test_micro import DROPOUT, kept_bytes
from tests.pretrain.tiny import SMALL_BUCKETS, VOCABULARY, random_batch, tiny_config


def tiny(**sections: object) -> PretrainConfig:
    return tiny_config(**merge(tiny_config().model_dump(), sections))


def task_of(config: PretrainConfig) -> Task:
    torch.manual_seed(0)
    return Task(config.model, config.objectives, VOCABULARY)


def losses_and_gradients(task: Task) -> dict[str, Tensor]:
    task.zero_grad()
    torch.manual_seed(1)
    losses = task(random_batch(8))
    losses["loss"].backward()
    found = {f"loss {name}": loss.detach() for name, loss in losses.items()}
    return found | {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def test_recomputed_blocks_give_the_same_gradient_and_replay_dropout():
    task = task_of(tiny(model=DROPOUT)).train()
    expected = losses_and_gradients(task)
    arrange(task, EngineConfig(activation_checkpointing=True))
    found = losses_and_gradients(task)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    dry = losses_and_gradients(task.eval())
    assert not torch.isclose(dry["loss loss"], expected["loss loss"])


def test_recomputed_blocks_keep_less():
    task = task_of(tiny())
    whole = kept_bytes(task, 1, 16)
    arrange(task, EngineConfig(activation_checkpointing=True))
    # Measured: 0.44, with one block to each tower; embeddings, projections and the word head keep theirs.
    assert kept_bytes(task, 1, 16) < 0.55 * whole


RESNET = ("objectives={itc: {}}", "model.fusion.trunk=none", "model.vision={name: resnet10t}", "model.image_size=64")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "accumulation=2",
            r"`engine\.accumulation` \(=2\) needs a model without BatchNorm \(.*\); the first is model\.v",
        ),
        ("activation_checkpointing=true", r"`engine\.activation_checkpointing` \(=True\) needs .* without BatchNorm"),
        ("precision=fp16", r"`engine\.precision` \(=fp16\) is not for this accelerator \(=cpu\): use bf16 or fp32"),
        ("offload=optimizer", r"`engine\.offload` \(=optimizer\) moves state from an accelerator to the host, and"),
    ],
)
def test_what_cannot_work_is_refused(configure, monkeypatch, setting, message):
    monkeypatch.setattr("deepspeed.accelerator.cpu_accelerator.CPU_Accelerator.is_fp16_supported", lambda _: False)
    with pytest.raises(UserError, match=f"^{message}"):
        check(configure(*RESNET, "engine.zero=1", f"engine.{setting}"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"offload": "optimizer"}, r"`engine\.offload` \(=optimizer\) needs `engine\.zero` \(=0\) of 1 or more"),
        ({"offload": "all", "zero": 2}, r"`engine\.offload` \(=all\) needs `engine\.zero` \(=2\) of 3 or more"),
        ({"compile": True, "zero": 3}, r"`engine\.compile` \(=True\) needs `engine\.zero` \(=3\) of at most 2: .*"),
    ],
)
def test_stages_that_cannot_are_refused(values, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        parse_config(EngineConfig, values)


def test_a_compiler_is_asked_for(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"`engine\.compile` \(=True\) needs a C\+\+ compiler, and neither"):
        arrange(task_of(tiny()), EngineConfig(compile=True))


def test_a_setting_without_blocks_is_refused(monkeypatch):
    task = task_of(tiny())
    monkeypatch.setattr("pretrain.arrange.blocks", lambda _: iter(()))
    with pytest.raises(UserError, match=r"`engine\.activation_checkpointing` \(=True\) matches no layer"):
        arrange(task, EngineConfig(activation_checkpointing=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, from inside the compiler
def test_a_compiled_step_is_the_eager_step():
    """With recomputation. One length of text: another would compile again, with a symbol for the length."""
    start_process_group()
    runs = {}
    for compiled in (False, True):
        sparing = {"compile": compiled, "activation_checkpointing": compiled}
        dual = {"model": {"fusion": {"trunk": "none"}}, "objectives": {"itm": None, "mlm": None}}
        config = tiny(**dual, engine=sparing, optim={"name": "sgd"})
        engine = Engine(task_of(config), config)
        steps = [engine.step(random_batch(8, seed=seed), lr=0.1).losses["loss"] for seed in range(2)]
        runs[compiled] = steps, engine.weights()
    (expected, weights), (found, others) = runs[False], runs[True]
    # Measured: losses within 1e-7 relative, weights within 3e-8.
    assert found == pytest.approx(expected, rel=2e-6)
    assert_near(others, weights, 1e-6)


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    """Key biases aside, whose gradient is rounding alone (see tests/distributed)."""
    for name, value in expected.items():
        if not name.endswith(("key.bias", "qkv.bias")):
            torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def half(zero: int) -> PretrainConfig:
    return tiny(engine={"zero": zero, "precision": "fp16", "deepspeed": SMALL_BUCKETS}, optim={"clip": 0.5})


@pytest.mark.parametrize("zero", range(4))
def test_float16_finds_its_scale_and_then_follows_float32(zero):
    """The CPU computes in it slowly but right; what is refused there is to train so."""
    start_process_group()
    config = half(zero)
    engine = Engine(task_of(config), config)
    batch = random_batch(8)
    before = engine.weights()
    skipped = 0
    while all(torch.equal(before[name], weight) for name, weight in engine.weights().items()):
        engine.step(batch, lr=3e-3)
        skipped += 1
        assert skipped < 10
    full = config.model_copy(update={"engine": EngineConfig()})
    reference = Engine(task_of(full), full)
    reference.step(batch, lr=3e-3)
    for seed in (1, 2):
        found, expected = (e.step(random_batch(8, seed=seed), lr=3e-3).losses["loss"] for e in (engine, reference))
        # Measured: at most 1.1e-4 relative.
        assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("zero", [0, 2])
def test_float16_saves_its_scale_and_gives_up_on_gradients_that_no_scale_heals(zero, tmp_path):
    start_process_group()
    config = half(zero)
    engine, other = Engine(task_of(config), config), Engine(task_of(config), config)
    for _ in range(4):
        engine.step(random_batch(8), lr=1e-3)
    for path, state in engine.snapshot(tmp_path).items():
        path.parent.mkdir(exist_ok=True)
        torch.save(state, path)
    other.load(tmp_path)
    assert other._scale.state_dict() == engine._scale.state_dict() != LossScale().state_dict()
    next(engine._engine.module.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    while not (given_up := _step_fails(engine)):
        assert other._scale.value / 2**20 < engine._scale.value
    assert given_up == "the gradient is not finite; the optimizer has not moved"
    assert engine._scale.value < 1


def _step_fails(engine: Engine) -> str:
    try:
        engine.step(random_batch(8), lr=1e-3)
    except NonFinite as error:
        return str(error)
    return ""


def test_the_scale_halves_on_overflow_and_doubles_with_patience():
    scale = LossScale(8.0, patience=2)
    seen = []
    for moved in (True, True, True, False, True, True, False, False, False, False, False, False):
        scale.update(moved)
        seen.append(scale.value)
    assert seen == [8, 16, 16, 8, 8, 16, 8, 4, 2, 1, 0.5, 0.25]
    assert scale.exhausted


@pytest.mark.parametrize(("zero", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")])
def test_offloading_leaves_the_numbers_alone(zero, offload):
    """On the CPU there is nowhere to move to, but DeepSpeed goes the same way; only `check` refuses it."""
    start_process_group()
    runs = []
    for engine in ({"zero": zero}, {"zero": zero, "offload": offload}):
        config = tiny(engine=engine | {"deepspeed": SMALL_BUCKETS}, optim={"ema": 0.9})
        built = Engine(task_of(config), config)
        losses = [built.step(random_batch(8, seed=step), lr=3e-3).losses["loss"] for step in range(3)]
        assert built.ema
        runs.append((losses, built.weights(), built.ema.weights()))
    (losses, *states), (other_losses, *other_states) = runs
    # Measured: losses equal, weights within 6e-8; the norm that clips is summed in another order.
    assert other_losses == pytest.approx(losses, rel=1e-6)
    for state, other in zip(states, other_states, strict=True):
        assert_near(other, state, 1e-6)


def test_every_block_is_recomputed():
    task = task_of(tiny())
    calls = []
    for name, block in blocks(task):
        block.register_forward_hook(lambda *_, name=name: calls.append(name))
        inner = block.forward
        block.forward = lambda *a, inner=inner, name=name, **o: (calls.append(f"inside {name}"), inner(*a, **o))[1]
    arrange(task, EngineConfig(activation_checkpointing=True))
    task(random_batch(8))["loss"].backward()
    for name, _ in blocks(task):
        assert calls.count(f"inside {name}") == 2 * calls.count(name) > 0


def test_blocks_of_the_trunk_alone_are_recomputed():
    """Beside an image tower that cannot run twice."""
    vision = {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}}
    task = task_of(tiny_config(model=tiny().model_dump()["model"] | {"image_size": 64, "vision": vision}))
    with pytest.raises(UserError, match="needs a model without BatchNorm"):
        arrange(task, EngineConfig(activation_checkpointing=True))
    before = {name: block.forward for name, block in blocks(task)}
    arrange(task, EngineConfig(activation_checkpointing=["model.fusion."]))
    changed = {name for name, block in blocks(task) if block.forward != before[name]}
    assert changed == {name for name in before if name.startswith("model.fusion.")} != set()
    with pytest.raises(
        UserError, match=r"`engine\.activation_checkpointing` \(=model\.trunk\) matches no block; blocks"
    ):
        arrange(task, EngineConfig(activation_checkpointing=["model.trunk"]))


def test_checkpoints_of_before_are_read():
    """They name a setting of the trunk that the engine's has replaced."""
    assert parse_config(FusionConfig, {"recompute": False}) == FusionConfig()
    with pytest.raises(UserError, match=r"is now `engine\.activation_checkpointing=\[model\.fusion\.\]`"):
        parse_config(FusionConfig, {"recompute": True})
