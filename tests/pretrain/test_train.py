"""The loop: it learns, it stops when it must, it goes on bit for bit, and it refuses what cannot work."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.checkpoint import load_checkpoint
from pretrain.config import OptimConfig
from pretrain.engine import Engine
from pretrain.optim import build_optimizer, learning_rate, set_lr
from pretrain.stepped import NonFinite
from pretrain.stop import Interrupted
from pretrain.task import Task
from pretrain.train import fit
from shards.errors import DamagedSample, UserError
from shards.sample import Sample
from shards.sources.scenes import ScenesSource
from shards.write import build_shards
from tests.pretrain.colours import Colours
from tests.pretrain.runs import files, interrupted, logged, weights
from tests.pretrain.tiny import VOCABULARY, random_batch, tiny_config
from tests.ranks import environment
from tests.shards.server import serving

LEARNS = (
    "run.steps=120",
    "run.log_every=10",
    "optim.lr=3e-3",
    "optim.warmup_steps=10",
    "data.group_by=colour",
    "model.fusion.norm=pre",
    "model.text.options.initializer_range=0.1",  # as narrow as 32, the usual 0.02 tells words apart slowly
)


@pytest.mark.parametrize(
    ("objective", "start", "floor"),
    [
        ("itc", math.log(8), math.log(2)),  # eight pairs, of which two share a colour
        ("itm", math.log(2), 0),
        ("mlm", 5.5, 0),  # about the log of the vocabulary; only the picture tells the hidden word
    ],
)
def test_each_objective_reaches_its_floor(configure, tmp_path, objective, start, floor):
    fit(configure(*LEARNS, f"objectives={{{objective}: {{}}}}"), Colours())
    losses = [line[f"loss/{objective}"] for line in logged(tmp_path / "run")]
    assert losses[0] > floor + 0.15 * (start - floor)
    # Measured: at most 0.03 above the floor.
    assert losses[-1] == pytest.approx(floor, abs=0.1)


def test_bfloat16_follows_float32_and_keeps_its_weights(configure, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        run = tmp_path / precision
        fit(configure(f"run.out={run}", f"engine.precision={precision}", "run.steps=3", "run.log_every=1"))
        losses[precision] = [line["loss"] for line in logged(run)]
        assert {weight.dtype for weight in load_file(weights(run, 3)).values()} <= {torch.float32, torch.int64}
    assert losses["bf16"] != losses["fp32"]
    # Measured: at most 1.4e-4 relative; bfloat16 keeps eight bits.
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.002)


def test_all_objectives_together_fall_on_scenes(configure, tmp_path):
    fit(configure("run.steps=60", "run.log_every=20", "optim.lr=3e-3", "data.global_batch=16"))
    first, *_, last = logged(tmp_path / "run")
    assert last["loss/mlm"] < first["loss/mlm"] - 0.5
    assert last["loss"] < first["loss"] - 0.5
    assert last["loss"] == pytest.approx(sum(last[f"loss/{name}"] for name in ("itc", "itm", "mlm")), rel=1e-5)


RESUMED = (
    "run.steps=6",
    "run.save_every=3",
    "run.keep_last=9",
    "optim.lr=3e-3",
    "model.fusion.dropout=0.2",
    "model.text.options.hidden_dropout_prob=0.1",
    "data.augment={crop_scale: 0.6, color: 0.2, flip: true, erase: 0.3}",
)


@pytest.mark.parametrize(("workers", "later"), [(0, 0), (2, 1)])
def test_an_interrupted_run_goes_on_bit_for_bit(configure, tmp_path, workers, later):
    fit(configure(*RESUMED, f"data.workers={workers}"))
    copy = interrupted(tmp_path / "run", 3, tmp_path / "copy")
    fit(configure(*RESUMED, f"data.workers={later}", f"run.out={copy}", "run.resume=auto"))
    assert logged(copy) == logged(tmp_path / "run")
    assert weights(copy, 6).read_bytes() == weights(tmp_path / "run", 6).read_bytes()


def test_dropout_and_seed_change_the_run(configure, tmp_path):
    """Else the test above would prove little."""
    for name, setting in {"a": "run.seed=0", "b": "run.seed=1", "c": "model.fusion.dropout=0.3"}.items():
        fit(configure(*RESUMED, setting, f"run.out={tmp_path / name}"))
    a, b, c = (logged(tmp_path / name)[0]["loss"] for name in "abc")
    assert len({a, b, c}) == 3


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(corpus, tmp_path):
    """SIGKILL, wherever it strikes after the first checkpoint."""

    def command(out, *more):
        settings = ("run.steps=40", "run.save_every=2", "model.fusion.dropout=0.2")
        return [sys.executable, "-m", "pretrain.cli", "--config", corpus.config, f"run.out={out}", *settings, *more]

    subprocess.run(command(tmp_path / "whole"), check=True, env=environment(), capture_output=True)
    with subprocess.Popen(command(tmp_path / "killed"), env=environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not weights(tmp_path / "killed", 40).exists()
    subprocess.run(command(tmp_path / "killed", "--resume"), check=True, env=environment(), capture_output=True)
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    assert weights(tmp_path / "killed", 40).read_bytes() == weights(tmp_path / "whole", 40).read_bytes()
    assert [f for f in files(tmp_path / "killed" / "checkpoints") if f.startswith(".partial")] == []


class Asking(Colours):
    """Signals this process when the third step reads its batch of eight."""

    def __getitem__(self, index: int) -> Sample:
        self.read = getattr(self, "read", 0) + 1
        if self.read == 3 * 8 + 2:  # check() reads one more, and the rehearsal a batch
            signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(index)


def test_a_run_that_is_asked_to_stop_saves_and_can_go_on(configure, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        fit(configure(), Asking())
    assert caught.value.code == 75
    assert "stopped by a signal after step 3 of 4; the run is saved and can go on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert load_checkpoint(tmp_path / "run").step == 3
    assert load_checkpoint(fit(configure("run.resume=auto"), Colours())).step == 4


def test_a_finished_run_is_left_as_it_is(configure, tmp_path):
    first = fit(configure())
    written = weights(tmp_path / "run", 4).stat().st_mtime_ns
    assert fit(configure("run.resume=auto")) == first
    assert weights(tmp_path / "run", 4).stat().st_mtime_ns == written
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_may_be_made_longer(configure, tmp_path):
    fit(configure("run.steps=2"))
    assert load_checkpoint(fit(configure("run.steps=3", "run.resume=auto"))).step == 3
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3]


def test_no_steps_give_the_untrained_model(configure):
    config = configure("run.steps=0")
    found = load_checkpoint(fit(config))
    torch.manual_seed(config.run.seed)
    expected = Task(config.model, config.objectives, len(found.tokenizer)).state_dict()
    assert found.step == 0
    assert all(torch.equal(value, expected[name]) for name, value in found.task.state_dict().items())


def test_overwriting_starts_anew(configure, tmp_path):
    fit(configure())
    fit(configure("run.steps=1", "run.resume=overwrite"))
    assert [line["step"] for line in logged(tmp_path / "run")] == [1]
    assert not weights(tmp_path / "run", 4).exists()


def test_another_run_is_not_written_over(configure, tmp_path):
    fit(configure("run.steps=1"))
    before = files(tmp_path / "run")
    with pytest.raises(UserError, match=r"`run\.out` .* already holds a run; continue it with --resume or delete it"):
        fit(configure("run.steps=1"))
    with pytest.raises(UserError, match=r"^`optim\.lr` \(=0\.5\) must be 0\.0001, as in the run that"):
        fit(configure("optim.lr=0.5", "run.resume=auto"))
    with pytest.raises(UserError, match=r"^`run\.seed` \(=5\) must be 0, as in the run that"):
        fit(configure("run.seed=5", "run.resume=auto"))
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("resume", ["never", "auto", "overwrite"])
def test_foreign_files_are_safe(configure, tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="it holds files that are not a run's"):
        fit(configure(f"run.resume={resume}"))
    assert files(tmp_path / "run") == ["thesis.tex"]


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(configure, tmp_path):
    """The checkpoint of step 2 is poisoned, so that step 3 meets a NaN."""
    settings = ("run.steps=4", "run.save_every=2", "run.keep_last=9", "run.max_rollbacks=0")
    fit(configure(*settings))
    run = interrupted(tmp_path / "run", 2, tmp_path / "copy")
    state = torch.load(found := next(run.rglob("mp_rank_00_model_states.pt")), weights_only=False)
    state["module"]["model.text_projection.weight"][0, 0] = math.nan
    torch.save(state, found)
    before = files(run)
    with pytest.raises(NonFinite, match=r"the loss `\w+` is nan; the optimizer has not moved"):
        fit(configure(*settings, f"run.out={run}", "run.resume=auto"))
    added = {file for file in files(run) if "tfevents" not in file} - set(before)
    assert added == set()  # no checkpoint, and without a budget no batch is tried in its place
    assert set(before) <= set(files(run))
    assert load_checkpoint(run).step == 2


def test_the_optimizer_has_not_moved_after_a_bad_loss(configure):
    config = configure()
    task = Task(config.model, config.objectives, VOCABULARY)
    fit(configure("run.steps=0"))  # starts the process group that the engine needs
    engine = Engine(task, config)
    with torch.no_grad():
        task.objectives["itc"].log_temperature.fill_(math.nan)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(NonFinite):
        engine.step(random_batch(8), lr=1.0)
    after = task.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n != "objectives.itc.log_temperature")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", range(4))
def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(configure, zero, precision):
    """Once sound, once poisoned while every loss is finite, and sound again: nothing is left of the bad step."""
    config = configure(f"engine.zero={zero}", f"engine.precision={precision}")
    fit(configure("run.steps=0"))  # starts the process group that the engine needs
    task = Task(config.model, config.objectives, VOCABULARY)
    engine = Engine(task, config)
    untrained = engine.weights()
    assert math.isfinite(engine.step(random_batch(8), lr=1e-3).losses["loss"])
    before = engine.weights()
    assert not all(torch.equal(before[name], untrained[name]) for name in before)
    poison = task.model.text_projection.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFinite, match=r"^the gradient is not finite; the optimizer has not moved$"):
        engine.step(random_batch(8), lr=1e-3)
    after = engine.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    poison.remove()
    engine.step(random_batch(8), lr=1e-3)
    assert all(weight.isfinite().all() for weight in engine.weights().values())


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
    save_file({"cls_token": torch.zeros(1, 1, 7)}, tmp_path / "other.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"no weights")
    for name, message in {
        "half": "does not fit: .* missing",
        "other": "cannot be loaded",
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


def test_frozen_parameters_stay_and_the_others_move(configure, tmp_path):
    fit(configure("run.save_every=1", "run.keep_last=9", "optim.freeze=[model.text., objectives.itm.]"))
    first, last = (load_file(weights(tmp_path / "run", step)) for step in (1, 4))
    still = {name for name in first if torch.equal(first[name], last[name])}
    assert still == {name for name in first if name.startswith(("model.text.", "objectives.itm."))}


def test_the_longest_prefix_gives_the_factor():
    task = Task(tiny_config().model, tiny_config().objectives, VOCABULARY)
    config = OptimConfig(multipliers={"model.": 0.5, "model.text.": 0.1}, weight_decay=0.3)
    optimizer = build_optimizer(task, config)
    set_lr(optimizer, 2.0)
    names = {id(p): n for n, p in task.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            factor = 0.1 if name.startswith("model.text.") else 0.5 if name.startswith("model.") else 1.0
            assert group["lr"] == pytest.approx(2 * factor)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
    assert names == {}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4]),
        (
            "cosine",
            [0.25, 0.5, 0.75, 1.0, 1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5))],
        ),
    ],
)
def test_the_learning_rate_by_hand(schedule, expected):
    config = OptimConfig(lr=1.0, final_lr=0.2, warmup_steps=4, schedule=schedule)
    assert [learning_rate(step, 8, config) for step in range(8)] == pytest.approx(expected)
    assert learning_rate(8, 8, config) == pytest.approx(1.0 if schedule == "constant" else 0.2)


def test_the_log_names_rate_and_speed(configure, tmp_path):
    fit(configure("run.log_every=3", "optim.schedule=constant", "optim.lr=0.25"))
    lines = logged(tmp_path / "run", timing=True)
    assert [line["step"] for line in lines] == [3, 4]  # the last step is reported whatever the rhythm
    assert all(line["lr"] == 0.25 and line["samples_per_second"] > 0 and 0 <= line["data_wait"] <= 1 for line in lines)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_run_moves_with_its_folder(configure, tmp_path):
    fit(configure("run.steps=2"))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "elsewhere").step == 2
    moved = fit(configure("run.steps=3", f"run.out={tmp_path / 'elsewhere'}", "run.resume=auto"))
    assert load_checkpoint(moved).step == 3


def test_a_mixture_trains_and_a_changed_one_is_not_resumed(configure, corpus, tmp_path):
    other = tmp_path / "other"
    build_shards(ScenesSource(16, seed=5, split="train", size=48), other)
    parts = f"{{place: {corpus.shards}, weight: 3}}, {{place: {other}"
    fit(configure(f"data.shards=[{parts}}}]", "run.steps=2"))
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())["stream"]
    assert [(source["name"], source["share"]) for source in state["sources"]] == [("shards", 3), ("other", 1)]
    with pytest.raises(
        UserError, match=r"^`data\.shards` .*'weight': 2\.0, .* must be .*'weight': 1\.0, .*, as in the run"
    ):
        fit(configure(f"data.shards=[{parts}, weight: 2}}]", "run.steps=3", "run.resume=auto"))


def test_training_from_a_url_is_training_from_the_folder(configure, corpus, tmp_path):
    fit(configure("run.steps=2"))
    with serving(corpus.shards) as server:
        cache = tmp_path / "cache"
        fit(configure(f"data.shards={server.url}", f"data.cache={cache}", "run.steps=2", f"run.out={tmp_path / 'far'}"))
    assert weights(tmp_path / "far", 2).read_bytes() == weights(tmp_path / "run", 2).read_bytes()


def test_damaged_samples_are_left_out_and_entered_in_the_runs_ledger(configure, corpus, tmp_path):
    shutil.copytree(corpus.shards, tmp_path / "damaged")
    tar = tmp_path / "damaged/shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    fit(configure(f"data.shards={tmp_path / 'damaged'}", "data.damage_budget=0.02", "run.steps=8"))
    (line,) = (tmp_path / "run/damage/rank-00000.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "shard-000001.tar, sample 0: the image does not match its checksum"
    with pytest.raises(
        DamagedSample, match=r"^1 of 64 samples are damaged, more than `damage_budget` \(=0\.01\) allows"
    ):
        fit(configure(f"data.shards={tmp_path / 'damaged'}", "run.steps=8", f"run.out={tmp_path / 'strict'}"))
