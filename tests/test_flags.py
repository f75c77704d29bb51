"""Flags are made from configurations: defaults, limits, shared flags, YAML, what a resume may change."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

import config
import devices
import flags
import manipulate
import train
import visualize
from app import AppConfig
from attributes import parse_request
from config import ADJUSTABLE, FREE, SAME, SEED, EditSettings, ModelConfig
from encode_latents import EncodeConfig
from evaluate import EditsConfig, JudgeConfig, SamplesConfig
from export import ExportConfig
from manipulate import ManipulateConfig
from train import TrainConfig, learning_rate
from visualize import VisualizeConfig

SCRIPTS = (TrainConfig, ManipulateConfig, VisualizeConfig)
DATA = ["--data_root", "x"]
REQUIRED = {SamplesConfig: DATA, EditsConfig: DATA, VisualizeConfig: ["all"]}
REQUIRED |= {JudgeConfig: DATA, EncodeConfig: DATA, ExportConfig: ["--out", "x"]}
EVERY = (*SCRIPTS, AppConfig, EncodeConfig, ExportConfig, JudgeConfig, SamplesConfig, EditsConfig)


def parsed(kind, *argv: str):
    return flags.parse(kind, "A script.", [*REQUIRED.get(kind, []), *argv])


def test_a_class_may_be_named_like_a_negative_number():
    """Or begin with a dash. A flag that does not exist is none of its names."""
    words = ("-1=1", "-old=0", "-.5=1", "Smiling=1")
    config = manipulate.parse_args(["--attributes", *words, "--num_samples", "1"])
    assert config.generate.attributes == words and config.generate.num_samples == 1
    assert parse_request(config.generate.attributes)["-1"] == 1
    assert train.parse_args(["--attribute", "-1", "--data_root", "a"]).attribute == ("-1",)
    assert manipulate.parse_args(["--unspecified", "-1"]).unspecified == -1


@pytest.mark.parametrize("kind", SCRIPTS)
def test_without_flags_a_script_has_its_configuration_s_defaults(kind):
    assert parsed(kind) == kind()
    if kind is TrainConfig:  # as the documents say
        config = kind()
        assert config.model.channels == (64, 128, 256, 512) and config.model.latent_dim == 512
        assert (config.batch_size, config.lr, config.epochs) == (16, 1e-3, 100)
        assert config.loss.cfg_dropout == 0.1 and config.loss.ae_weight == 0.1
        assert (config.save_interval, config.sample_interval) == (10, 5)


def test_a_flag_fills_every_field_of_its_name():
    """Sampling and editing each have a number of steps with a default of its own, and one flag."""
    assert parsed(ManipulateConfig).generate.sampling.num_inference_steps is None
    assert parsed(ManipulateConfig).edit.editing.num_inference_steps == 12
    given = parsed(ManipulateConfig, "--num_inference_steps", "3", "--t_start", "0.5")
    sampling, editing = given.generate.sampling, given.edit.editing
    assert sampling.num_inference_steps == editing.num_inference_steps == 3
    assert editing.t_start == 0.5
    assert parsed(ManipulateConfig, "--depth", "0.5").edit.editing.t_start == 0.5, "its old name"
    both = parsed(TrainConfig, "--image_size", "32")
    assert both.model.image_size == both.first_stage.image_size == 32


def test_new_faces_and_edits_have_a_guidance_scale_each():
    for flag, scales in (("--cfg_scale", (2, None)), ("--edit_cfg_scale", (None, 2))):
        given = parsed(ManipulateConfig, flag, "2")
        assert (given.generate.sampling.cfg_scale, given.edit.editing.cfg_scale) == scales


def test_only_the_named_flags_of_a_nested_configuration_are_the_script_s():
    samples = parsed(SamplesConfig, "--cfg_scale", "1", "2", "--eta", "0.5")
    assert samples.cfg_scale == (1, 2) and samples.sampling.eta == 0.5
    edits = parsed(EditsConfig, "--edit_cfg_scale", "1", "2", "--t_start", "1")
    assert edits.edit_cfg_scale == (1, 2) and edits.editing.t_start == 1
    assert edits.editing.cfg_scale is None and samples.sampling.cfg_scale is None
    with pytest.raises(SystemExit):
        parsed(VisualizeConfig, "--t_start", "0.5")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--batch_size", "0"], "expected a whole number at least 1, got '0'"),
        (["--dropout", "1.5"], "expected a number at least 0 and at most 1, got '1.5'"),
        (["--lr", "nan"], "expected a number more than 0, got 'nan'"),
        (["--channels", "64", "x"], "got 'x'"),
        (["--schedule", "curve"], "'curve'"),
        (["--batch", "3"], "--batch"),
        (["--dataset", "celeba"], "--dataset celeba needs --data_root"),
        (["--stage", "guide", "--compile"], "--compile is for the UNet"),
    ],
)
def test_wrong_flags_are_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(TrainConfig, *argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and said in line and line.endswith("(see --help)")


def test_help_names_every_flag_its_default_and_choices(capsys):
    with pytest.raises(SystemExit):
        parsed(TrainConfig, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for name in flags.by_flag(TrainConfig):
        assert f"--{name}" in text
    assert "(default: 0.001)" in text and f"{{{','.join(config.SCHEDULES)}}}" in text


@pytest.mark.parametrize("kind", SCRIPTS)
def test_what_flags_of_writes_gives_the_same_configuration(kind, tmp_path):
    argv = ["--seed", "3", "--device", "cpu"]
    if kind is TrainConfig:
        argv += ["--channels", "8", "16", "--no-bottleneck_attention", "--self_attention_levels"]
        argv += ["--shared_film", "--lr", "1e-05", "--image_size", "32"]
    if kind is ManipulateConfig:
        argv += ["--attributes", "Smiling=1", "--from", "Male=1", "--to", "Male=0", "--cfg_scale", "3"]
        argv += ["--edit_cfg_scale", "2"]
    before = parsed(kind, *argv)
    written = {k: v for k, v in flags.flags_of(before).items() if k != "what"}
    (tmp_path / "flags.yaml").write_text(yaml.safe_dump(written))
    assert parsed(kind, "--config", str(tmp_path / "flags.yaml")) == before


def test_a_command_has_the_flags_that_differ_from_their_defaults():
    for options, flag in (
        ({"model": ModelConfig(channels=(8, 16, 32, 64))}, "--channels 8 16 32 64"),
        ({"model": ModelConfig(bottleneck_attention=False)}, "--no-bottleneck_attention"),
        ({"model": ModelConfig(shared_film=True)}, "--shared_film"),
        ({"lr": 1e-5}, "--lr 1e-05"),
        ({"model": ModelConfig(self_attention_levels=())}, "--self_attention_levels"),
        ({"data_root": "my faces"}, "--data_root 'my faces'"),
    ):
        assert flags.command("train.py", TrainConfig(**options)) == f"python train.py {flag}"


def test_an_old_python_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(flags.__file__)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("Python 3.10 or newer is needed, and ")


def test_the_oldest_python_is_the_same_everywhere():
    root, (major, minor) = Path(flags.__file__).parent, flags.OLDEST_PYTHON
    for file, said in (
        ("README.md", f"Python {major}.{minor} or newer"),
        ("Makefile", f"python{major}.{minor} -m venv"),
        ("requirements.txt", f"Python {major}.{minor}."),
        ("pyproject.toml", f'target-version = "py{major}{minor}"'),
        ("pyproject.toml", f'requires-python = ">={major}.{minor},'),
        (".github/workflows/test.yml", f'python: ["{major}.{minor}", "3.14"]'),
    ):
        assert said in " ".join((root / file).read_text(encoding="utf-8").split()), file


def test_a_missing_package_is_one_line_and_a_bug_is_none(capsys):
    error = ModuleNotFoundError("No module named 'torch'")
    assert "No module named 'torch', for " in flags.in_one_line(error, "train.py")
    assert flags.in_one_line(TypeError("a bug"), "train.py") is None


def test_scripts_need_no_backend_of_a_notebook_and_show_the_codes_of_letters_that_a_terminal_lacks():
    code = "(__import__('matplotlib.pyplot'), print('Jos\u00e9'))"
    backend = "module://matplotlib_inline.backend_inline"
    done = subprocess.run(
        [sys.executable, "-c", f"import flags; flags.run(lambda: {code})"],
        cwd=Path(flags.__file__).parent,
        env=os.environ | {"MPLBACKEND": backend, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == b"Jos\\xe9"


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("lr: 0.5\nbatch_size: 3\nbottleneck_attention: false\nchannels: [8, 16]\n")
    given = parsed(TrainConfig, "--config", str(path), "--batch_size", "4")
    assert (given.lr, given.batch_size) == (0.5, 4)
    assert given.model.bottleneck_attention is False and given.model.channels == (8, 16)


def refused(capsys, kind, *argv: str) -> str:
    """The line of a wrong command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        parsed(kind, *argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


def test_files_are_merged_in_their_order(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("lr: 0.5\nbatch_size: 3\ncompile: true\nmax_steps: 9\n")
    second.write_text("lr: 0.7\ncompile: false\nmax_steps: null\n")
    both = ("--config", str(first), f"--config={second}")
    given = parsed(TrainConfig, *both)
    assert (given.lr, given.batch_size, given.compile, given.max_steps) == (0.7, 3, False, None)
    assert parsed(TrainConfig, *both[2:], *both[:2]).lr == 0.5
    assert parsed(TrainConfig, *both, "--lr", "0.9").lr == 0.9


def test_settings_are_saved_and_loaded(tmp_path):
    """In the form of --config. A stranger's file is an error in one line."""
    path = tmp_path / "moves.yaml"
    moves = EditSettings(attributes=("Smiling=1", "No=0.5"), pins=("Male",), mask="/a/b.png", seed=3)
    flags.write_yaml(path, flags.portable(moves))
    assert flags.read_yaml(EditSettings, path) == replace(moves, mask=None)
    assert manipulate.parse_args(["--config", str(path)]).edit == replace(moves, mask=None)
    for text in ("mode: edit", "attributes: [--help]", "seed: --help", "seed: x", "[", "config: a"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            flags.read_yaml(EditSettings, path)


def test_a_file_of_a_stranger_prints_no_help_and_is_not_long(tmp_path, capsys):
    path = tmp_path / "moves.yaml"
    for text, line in (
        ("attributes: [Smiling=1, -h]", "-h is no value"),
        ("seed: 1\n" + "#" * 30_000, "more than 20,000 bytes"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=line):
            flags.read_yaml(EditSettings, path)
    assert capsys.readouterr() == ("", "")


def test_a_key_that_stands_twice_is_refused(tmp_path, capsys):
    path = tmp_path / "some.yaml"
    path.write_text("lr: 0.5\nseed: 1\nlr: 0.7\n")
    assert f"{path} sets lr twice, again in line 3" in refused(
        capsys, TrainConfig, "--config", str(path)
    )


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        *((f"compile: {word}", "compile", True) for word in ("yes", "Yes", "on", "TRUE")),
        *((f"compile: {word}", "compile", False) for word in ("no", "Off", "False", "null", "~", "")),
        *((f"max_steps: {word}", "max_steps", None) for word in ("null", "~", "", "None", "'none'")),
        *((f"init_from: {word}", "init_from", None) for word in ("null", "none")),
        ("mixed_precision: no", "mixed_precision", "no"),
        ("report_to: none", "report_to", "none"),
        ("report_to: null", "report_to", "tensorboard"),
        ("resume: yes", "resume", ""),
        ("resume: no", "resume", None),
        ("attribute: [no, Yes]", "attribute", ("no", "Yes")),  # names
    ],
)
def test_the_words_of_yaml_for_yes_no_and_nothing(tmp_path, line, name, value):
    (tmp_path / "some.yaml").write_text(line)
    assert getattr(parsed(TrainConfig, "--config", str(tmp_path / "some.yaml")), name) == value


def test_what_a_config_switches_on_the_command_line_switches_off(tmp_path):
    (tmp_path / "some.yaml").write_text("compile: true\nshared_film: true")
    config = parsed(TrainConfig, "--config", str(tmp_path / "some.yaml"), "--no-compile")
    assert not config.compile and config.model.shared_film


@pytest.mark.parametrize("word", ["no", "true"])
def test_a_word_of_yaml_is_no_path(tmp_path, capsys, word):
    path = tmp_path / "some.yaml"
    path.write_text(f"init_from: {word}")
    line = refused(capsys, TrainConfig, "--config", str(path))
    assert f"sets init_from to {word}: use null for none, ./{word} for a file" in line


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_home_is_found_in_every_path(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    kinds = flags.by_flag(kind).items()
    names = {name for name, behind in kinds if config.is_path(behind[0].hint, behind[0].facts)}
    assert "checkpoint" in names or kind in (TrainConfig, EncodeConfig, JudgeConfig)
    for name in names - {"host"}:
        words = [word for word in REQUIRED.get(kind, []) if word not in (f"--{name}", "x")]
        for argv in ([f"--{name}=~/a"], ["--config", "~/some.yaml"]):
            (tmp_path / "some.yaml").write_text(f"{name}: ~/a")
            if kind in (SamplesConfig, EditsConfig, JudgeConfig, EncodeConfig) and name != "data_root":
                argv = [*argv, *DATA]
            if kind is ExportConfig and name != "out":
                argv = [*argv, "--out", "x"]
            if name == "target_image":
                argv = [*argv, "--source_image", "x"]
            given = flags.parse(kind, "", [*(w for w in words if w == "all"), *argv])
            path = str(tmp_path / "a")
            assert flags.flags_of(given)[name] in (path, [path]), name


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_script_has_seeds_up_to_63_bits(kind, capsys):
    if "seed" not in flags.by_flag(kind):
        assert kind in (AppConfig, EncodeConfig, ExportConfig)  # nothing is drawn there
        return
    largest = SEED["high"]
    assert largest == 2**63 - 1
    assert flags.flags_of(parsed(kind, "--seed", str(largest)))["seed"] == largest
    line = refused(capsys, kind, "--seed", str(largest + 1))
    assert f"at most {largest}, got '{largest + 1}'" in line


@pytest.mark.parametrize(
    ("kind", "argv", "said"),
    [
        (TrainConfig, ["--timesteps", "5"], ": did you mean --num_timesteps"),
        (TrainConfig, ["--batch-size=3"], ": did you mean --batch_size?"),
        (TrainConfig, ["--vae-channels", "3"], "or --channels?"),
        (
            ManipulateConfig,
            ["--steps", "3"],
            "did you mean --num_inference_steps or --interpolation_steps?",
        ),
        (AppConfig, ["--server_port", "80"], ": did you mean --port?"),
        (VisualizeConfig, ["--num-samples", "3"], ": did you mean --num_samples?"),
        (SamplesConfig, ["--num_sample", "3"], ": did you mean --num_samples"),
        (EncodeConfig, ["--first-stage", "x"], ": did you mean --first_stage?"),
        (ExportConfig, ["--output", "x"], ": did you mean --out?"),
        (TrainConfig, ["--learning_rate", "1"], "docs/coming_from.md has those of other programs"),
    ],
)
def test_an_unknown_flag_names_the_nearest(kind, argv, said, capsys):
    line = refused(capsys, kind, *argv)
    assert f"unrecognized arguments: {' '.join(argv)}" in line and said in line


def test_an_unknown_name_in_a_file_names_the_nearest(tmp_path, capsys):
    path = tmp_path / "some.yaml"
    path.write_text("batch-size: 3")
    line = refused(capsys, TrainConfig, "--config", str(path))
    assert "sets batch-size, which is no flag: did you mean batch_size?" in line


def test_the_newer_of_two_names_counts_where_it_comes_later(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("latents: old")
    assert parsed(TrainConfig, "--config", str(path), "--data_root", "new").data_root == "new"


def test_the_learning_rate_warms_up_and_anneals_or_stays_constant():
    for schedule, middle, end in (("cosine", 0.25, 0), ("constant", 0.5, 0.5)):
        given = parsed(TrainConfig, "--lr", "0.5", "--lr_schedule", schedule, "--warmup_steps", "3")
        assert learning_rate(given, 0, 0.0) == 0.125 and learning_rate(given, 3, 0.0) == 0.5
        assert learning_rate(given, 9, 0.5) == pytest.approx(middle)
        assert learning_rate(given, 9, 1.0) == pytest.approx(end)


def test_a_file_of_before_may_have_old_names(tmp_path):
    """An old name sets its own field only: the UNet keeps its channels."""
    path = tmp_path / "config.yaml"
    path.write_text("channels: [8, 16]\nvae_channels: [4, 8]\nlatents: folder\n")
    given = parsed(TrainConfig, "--config", str(path))
    assert given.model.channels == (8, 16) and given.first_stage.vae_channels == (4, 8)
    assert given.data_root == "folder"


def test_configurations_are_frozen_and_check_themselves():
    with pytest.raises(AttributeError):
        TrainConfig().lr = 1.0
    for wrong in (
        {"channels": ("a",)},
        {"channels": 3},
        {"image_size": 0},
        {"image_size": True},
        {"image_size": 10**6},
        {"prediction": "noise"},
        {"dropout": float("nan")},
        {"attribute_names": ("a", "a")},
        {"attribute_names": ("a/b",)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))[:9]):
            ModelConfig(**wrong)
    for wrong in ({"prediction": "v"}, {"prediction": "flow", "zero_terminal_snr": True}):
        with pytest.raises(ValueError, match="flow"):
            ModelConfig(schedule="flow", **wrong)


def test_every_flag_of_training_says_what_a_resumed_run_may_do():
    """What is not said to be free or adjustable must be the same, and is in the recipe."""
    kinds = {SAME, ADJUSTABLE, FREE}
    for setting in flags.settings(TrainConfig):
        assert setting.facts.resume in kinds
    facts = {each.name: each.metadata.get("flag") for each in fields(TrainConfig)}
    own = {name: each.resume for name, each in facts.items() if each}
    assert own["lr"] == ADJUSTABLE and own["log_dir"] == FREE and own["ema_decay"] == SAME


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"),
    [(True, False, "cuda"), (False, True, "cpu"), (True, True, "cuda"), (False, False, "cpu")],
)
def test_the_device_that_is_there(cuda, mps, auto, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.choose_device("auto") == auto and devices.choose_device("cpu") == "cpu"
    for name, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert devices.choose_device(name) == name
        else:
            with pytest.raises(ValueError, match=f"--device {name}, .* use --device {auto}"):
                devices.choose_device(name)


@pytest.mark.parametrize(
    ("name", "number"), [("cuda:1", 1), ("1", 1), ("gpu:0", 0), ("CUDA1", 1), ("gpu", None)]
)
def test_a_gpu_by_its_number(name, number, monkeypatch, capsys):
    import torch

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    given = parsed(TrainConfig, "--device", name).device
    assert devices.choose_device(given) == "cuda"
    assert chosen == ([] if number is None else [number])
    with pytest.raises(ValueError, match="--device cuda:2, but torch sees cuda:0, cuda:1 here: use one"):
        devices.choose_device(parsed(TrainConfig, "--device", "2").device)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is for one process, not 2: use --device cuda"):
        devices.choose_device("cuda:1")
    line = refused(capsys, TrainConfig, "--device", "tpu")
    assert "device must be auto, cpu, cuda, cuda:1 or mps, got 'tpu'" in line


def test_threads_are_no_more_than_the_processors_that_may_be_used(monkeypatch):
    import joblib
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for processors, threads in ((64, 2), (1, 1)):
            monkeypatch.setattr(joblib, "cpu_count", lambda number=processors: number)
            devices.choose_device("cpu")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_an_apple_gpu_computes_in_full_precision_unless_told():
    assert devices.choose_precision("auto", "mps") == "no"
    assert devices.choose_precision("bf16", "mps") == "bf16"
    with devices.autocast("auto", "mps"):  # needs no support of it in torch
        pass


def test_file_names_are_fit_for_windows():
    assert config.in_file_name('add "5:00"? Shadow|Hat') == "add _5_00__ Shadow_Hat"


def test_choices_are_the_names_in_the_registries():
    """They are written twice: to import a registry takes torch, and --help would wait for it."""
    import autoencoder_model
    import guidance
    import layers
    import noise_schedule
    import samplers
    from figures import figures
    from image_data import datasets, photograph
    from training import optimizers, stages

    for names, registries in (
        ("SCHEDULES PREDICTIONS LOSS_WEIGHTINGS", noise_schedule),
        ("SAMPLERS SPACINGS", samplers),
        ("GUIDANCE", guidance),
        ("FIRST_STAGES", autoencoder_model),
        ("NORMS ACTIVATIONS", layers),
        ("DATASETS", datasets),
        ("MASKS", photograph),
    ):
        for name in names.split():
            assert getattr(config, name) == tuple(getattr(registries, name)), name
    assert tuple(stages.STAGES) == train.STAGES
    assert tuple(optimizers.OPTIMIZERS) == train.OPTIMIZERS
    assert tuple(figures.FIGURES) == tuple(visualize.NEEDED_FLAGS)
