"""What a configuration is made of, and what each mistake says."""

from pathlib import Path

import pytest

from pretrain.config import PretrainConfig
from pretrain.engine import deepspeed_config
from pretrain.settings import dump_config, load_config
from shards.errors import UserError
from tests.pretrain.tiny import tiny_config


def load(*overrides: str, file: Path | None = None) -> PretrainConfig:
    return load_config(PretrainConfig, file, overrides)


def written(folder: Path, **files: str) -> Path:
    """Writes NAME.yaml for each keyword; returns the last."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{name}.yaml"


def test_later_sources_win_key_by_key(tmp_path):
    file = written(
        tmp_path,
        lowest="run: {steps: 1, seed: 1, log_every: 1}\noptim: {lr: 0.1}\n",
        middle="base: lowest.yaml\nrun: {steps: 2, seed: 2}\n",
        top="base: middle.yaml\nrun: {steps: 3}\n",
    )
    config = load("run.out=here", file=file)
    assert (config.run.steps, config.run.seed, config.run.log_every, config.optim.lr) == (3, 2, 1, 0.1)
    assert (config.run.out, config.run.keep_last) == ("here", 2)
    assert load("run.steps=4", "run.steps=5", file=file).run.steps == 5


def test_a_base_is_relative_to_the_file_that_names_it(tmp_path):
    (tmp_path / "inner").mkdir()
    written(tmp_path, shared="run: {steps: 7}\n")
    assert load(file=written(tmp_path / "inner", top="base: ../shared.yaml\n")).run.steps == 7


def test_a_null_in_a_file_leaves_out_what_its_base_has(tmp_path):
    file = written(
        tmp_path, base="objectives: {itc: {}, mlm: {weight: 2}}\n", top="base: base.yaml\nobjectives: {mlm: }\n"
    )
    config = load(file=file)
    assert config.objectives.mlm is None
    assert config.objectives.itc is not None


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optim.lr=1e-4", lambda c: c.optim.lr == 1e-4),
        ("optim.lr=3E5", lambda c: c.optim.lr == 3e5),
        ("data.group_by=null", lambda c: c.data.group_by is None),
        ("optim.freeze=[model.text., model.vision.]", lambda c: c.optim.freeze == ["model.text.", "model.vision."]),
        ("optim.multipliers={model.text.: 0.5}", lambda c: c.optim.multipliers == {"model.text.": 0.5}),
        ("run.out=a=b", lambda c: c.run.out == "a=b"),
        ("objectives.itc.weight=2", lambda c: c.objectives.itc.weight == 2),
        ("model.text.weights=package:name/folder", lambda c: c.model.text.weights == "package:name/folder"),
    ],
)
def test_overrides_are_yaml_values(override, read):
    assert read(load(override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"`optim\.lrr` is not a known key; did you mean `optim\.lr`\?"),
        ("runn.steps=1", r"`runn` is not a known key; did you mean `run`\?"),
        ("objectives.itc.temprature=1", r"`objectives\.itc\.temprature` .* `objectives\.itc\.temperature`\?"),
        ("run.steps=many", r"`run\.steps` \(='many'\) is refused: input should be a valid integer.*"),
        ("run.steps=-1", r"`run\.steps` \(=-1\) is refused: input should be greater than or equal to 0"),
        ("run.resume=maybe", r"`run\.resume` \(='maybe'\) is refused: input should be 'never', 'auto' or 'overwrite'"),
        ("optim.betas=[0.9, 1.5]", r"`optim\.betas\.1` \(=1\.5\) is refused: input should be less than 1"),
        ("optim.lr=", r"`optim\.lr` \(=None\) is refused: input should be a valid number"),
        ("run.steps", r"`run\.steps` must have the form dotted\.key=value"),
        ("=3", r"`=3` must have the form dotted\.key=value"),
        ("optim.freeze=[a", r"`optim\.freeze` \(=\[a\) is not a YAML value"),
        ("engine.deepspeed={gradient_accumulation_steps: 2}", r"is derived: set `engine\.accumulation`"),
        ("engine.deepspeed={zero_optimization: {stage: 3}}", r"is derived: set `engine\.zero`"),
    ],
)
def test_a_bad_override_is_one_sentence(override, message):
    with pytest.raises(UserError, match=f"^{message}$" if message.startswith("`") else message) as caught:
        load(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: [", "is not YAML"),
        ("run:\n\tsteps: 1", "is not YAML"),
        ("- 1\n- 2\n", "must hold keys and values, not a list"),
        ("run: 3\n", r"`run` \(=3\) is refused"),
        ("base: absent.yaml\n", "absent.yaml.* is not a file"),
        ("base: top.yaml\n", "leads back to itself"),
        ("run: {steps: 1, steps: 2}\n", "`steps` stands twice"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(file=written(tmp_path, top=text))
    assert "\n" not in str(caught.value)


def test_a_loop_of_two_files_is_found(tmp_path):
    with pytest.raises(UserError, match=r"one\.yaml\) leads back to itself"):
        load(file=written(tmp_path, two="base: one.yaml\n", one="base: two.yaml\n"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"`config` \(=.*absent\.yaml\) is not a file"):
        load(file=tmp_path / "absent.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "top.yaml").write_bytes(b"\xff\xfe\x00run")
    with pytest.raises(UserError, match="is not YAML"):
        load(file=tmp_path / "top.yaml")


def test_what_is_dumped_reads_back_equal(tmp_path):
    config = load(
        "optim.lr=1e-4",
        "optim.multipliers={model.text.: 1e-2}",
        "objectives={itc: {label_smoothing: 0.1}, mlm: null}",
        "engine.deepspeed={comms_logger: {enabled: false}}",
        'run.out="on"',
    )
    assert load(file=written(tmp_path, top=dump_config(config))) == config


@pytest.mark.parametrize("objective", ["itm", "mlm"])
def test_fused_objectives_need_a_trunk(objective):
    with pytest.raises(UserError, match=r"reads fused features, so `model\.fusion\.trunk` must not be `none`"):
        load("model.fusion.trunk=none", f"objectives.{objective}={{}}")
    assert load("model.fusion.trunk=none", "objectives.itc={}").model.fusion.trunk == "none"


def test_deepspeed_takes_batch_and_stage_from_here():
    config = tiny_config(
        engine={"zero": 2, "precision": "bf16", "deepspeed": {"zero_optimization": {"round_robin": 1}}}
    )
    derived = deepspeed_config(config, world=4)
    assert (derived["train_batch_size"], derived["train_micro_batch_size_per_gpu"]) == (8, 2)
    assert derived["zero_optimization"] == {"stage": 2, "round_robin": 1}


def test_shards_are_one_place_or_a_mixture(tmp_path):
    assert load("data.shards=a").data.shards == "a"
    mixed = load("data.shards=[{place: a, weight: 2}, {place: b}]")
    assert [(part.place, part.weight) for part in mixed.data.shards] == [("a", 2), ("b", 1)]
    file = tmp_path / "dumped.yaml"
    file.write_text(dump_config(mixed))
    assert load(file=file) == mixed


@pytest.mark.parametrize(
    ("shards", "where"),
    [
        ("3", r"\(=3\)"),
        ("[a]", r"\[0\]` \(='a'\)"),
        ("[{place: a, weight: 0}]", r"\[0\]\.weight` \(=0\)"),
        ("[{place: a}, {place: b, wieght: 2}]", r"\[1\]\.wieght` \(=2\)"),
        ("[{weight: 2}]", r"\[0\]\.place`"),
    ],
)
def test_what_is_no_mixture_is_one_sentence(shards, where):
    with pytest.raises(UserError, match=rf"^`data\.shards.*{where}.* a mixture is a list of {{place: ") as caught:
        load(f"data.shards={shards}")
    assert "\n" not in str(caught.value)
