"""How runs begin, go on and end on machines as they are: other weights, other flags, accelerate's
environment, notebooks, full disks, little memory, signals."""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import threading

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import one_line, run_training
from test_training import make_run
from torch.utils.tensorboard import SummaryWriter

import devices
import train
from checkpoint import load_checkpoint, replace_file
from diffusion_model import load_model
from synthetic_faces.dataset import parallel_draw
from train import TrainConfig
from training import process
from training.init_from import take_over
from training.process import keep_freed_memory, make_accelerator
from training.run import CheckpointFiles

FULL = OSError(errno.ENOSPC, "No space left on device")


# -------------------------------------------------------------------- how they end


def training_that_fails(at: int, error: BaseException, where: str = "before"):
    """``training_step`` that raises an error in step ``at``, before or in its update of the weights."""
    true_step = train.training_step

    def step(run, source):
        if run.step + 1 == at:
            next(source)
            if where == "update":
                run.whole = False
            raise error
        return true_step(run, source)

    return step


NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
NO_MEMORY += "you tried to allocate 1288490189 bytes. Error code 12 (Cannot allocate memory)"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError(NO_MEMORY),
            "out of memory, 1.20 GiB more were needed: lower --batch_size, or train",
        ),
        (MemoryError(), "out of memory: lower --batch_size"),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), "--grad_accum"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "CUDA out of memory: lower --batch_size"),
        (OSError(errno.EIO, "Input/output error", "faces.u8"), "faces.u8"),
    ],
    ids=["cpu", "python", "cuda", "gpu", "disk"],
)
def test_an_error_is_one_line_and_what_was_reached_is_saved(
    flags, tmp_path, monkeypatch, capsys, error, said
):
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr(train, "training_step", training_that_fails(3, error))
    line = one_line(capsys, lambda: run_training(flags, tmp_path, "--num_workers", "2"))
    assert said in line
    assert load_checkpoint(tmp_path / "last.pth")["step"] == 2
    assert not [each for each in threading.enumerate() if each.name.startswith("reader")]


def test_a_bug_keeps_its_traceback_and_saves_only_what_is_whole(flags, tmp_path, monkeypatch, capsys):
    for where, saved in (("before", True), ("update", False)):
        with monkeypatch.context() as patch:
            patch.setattr(train, "training_step", training_that_fails(2, TypeError("a bug"), where))
            with pytest.raises(TypeError, match="a bug"):
                run_training(flags, tmp_path / where)
        assert (tmp_path / where / "last.pth").exists() == saved
        assert ("stopped after step 1; saved" in capsys.readouterr().out) == saved


def test_a_full_log_disk_is_named_and_the_run_saved(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "LOG_STEPS", 2)

    def full(self):
        raise FULL

    monkeypatch.setattr(SummaryWriter, "flush", full)
    line = one_line(capsys, lambda: run_training(flags, tmp_path, "--report_to", "tensorboard"))
    assert f"cannot write the log in {tmp_path / 'logs' / '0001'} (No space left on device)" in line
    assert "choose another --log_dir" in line
    assert load_checkpoint(tmp_path / "last.pth")["step"] == 2


@pytest.mark.parametrize("stops", [KeyboardInterrupt(), ValueError("a bug"), FULL])
def test_what_stops_a_save_is_not_taken_for_a_full_disk(tmp_path, monkeypatch, stops):
    class Stopped:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise stops

    def write(file):
        torch.save({"a": torch.zeros(9)}, Stopped(file))

    expected = OSError if stops is FULL else type(stops)
    with pytest.raises(expected) as raised:
        replace_file(tmp_path / "a.pth", write)
    assert ("free some space" in str(raised.value)) == (stops is FULL)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_drawing_process_is_one_line(capsys):
    line = one_line(capsys, lambda: list(parallel_draw(os._exit, 4, 2, "drawing faces")))
    assert "a process that drew faces was killed" in line and "--num_workers 1" in line


def test_a_run_leaves_time_for_its_end(flags, tmp_path):
    run = make_run(flags, "--max_minutes", "1", "--epochs", "1000")
    run.seconds, run.finish_seconds = 30.0, 0.0
    assert run.progress == 0.5
    run.finish_seconds = 20.0
    assert run.progress == 0.75
    run.finish_seconds = 1e9  # half is for training at least
    assert run.progress == 1
    last = run_training(flags, tmp_path, "--max_minutes", "0.01", "--epochs", "1000")
    state = load_checkpoint(last)
    assert state["seconds"] > 0.3 and run_training(flags, tmp_path, "--max_minutes", "0.01", "--resume")
    assert load_checkpoint(last)["step"] == state["step"], "it had ended"


def test_the_end_of_a_run_is_timed(flags, tmp_path, monkeypatch):
    """Each validation takes a second. The third epoch would end after the time is over."""
    from training import monitoring

    clock, seconds = [0.0], {"step": 0.25, "validation": 1.0}
    true_step, true_validate = train.training_step, monitoring.validate

    def step(run, batches):
        clock[0] += seconds["step"]
        return true_step(run, batches)

    def validate(run):
        clock[0] += seconds["validation"]
        return true_validate(run)

    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train, "training_step", step)
    monkeypatch.setattr(monitoring, "validate", validate)
    more = ["--epochs", "1000", "--max_minutes", str(8 / 60)]
    state = load_checkpoint(run_training(flags, tmp_path, *more))
    assert clock[0] <= 8 and state["seconds"] == 7 and state["ending"] == 1


# -------------------------------------------------------------------- the process around them


def test_two_runs_do_not_share_a_folder(flags, tmp_path, capsys):
    save_dir = tmp_path / "deep" / "one"
    first = CheckpointFiles(TrainConfig(save_dir=str(save_dir), log_dir=str(tmp_path / "logs")))
    with first.held(is_main=True):
        line = one_line(capsys, lambda: run_training(flags, save_dir, "--max_steps", "1"))
        holder = rf"{save_dir} is in use by a run on {platform.node()}, process {os.getpid()}, since 20"
        assert re.search(holder, line) and "choose another --save_dir" in line
        run_training(flags, save_dir, "--dry_run")  # writes nothing
        guide = ["--stage", "guide", "--max_steps", "1"]  # has files of its own
        run_training(flags, save_dir, *guide)
        assert not (save_dir / "last.pth").exists()
    assert not list(save_dir.glob(".*"))
    run_training(flags, save_dir, "--max_steps", "1")
    empty = tmp_path / "a" / "b"
    wrong = CheckpointFiles(TrainConfig(save_dir=str(empty), log_dir="/dev/null/a"))
    with pytest.raises(OSError, match="--log_dir"), wrong.held(is_main=True):
        pass
    assert not empty.parent.exists(), "nothing is left behind"


def test_a_closed_terminal_and_slurm_stop_a_run_and_nohup_does_not(flags):
    accelerator = make_accelerator(train.parse_args(flags))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever runs the tests
    try:
        for name in process.STOPS:
            with process.StopRequest(accelerator) as stop:
                assert not stop
                os.kill(os.getpid(), getattr(signal, name))
                assert stop, name
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup sets it
        with process.StopRequest(accelerator) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_largest_seed_runs_and_resumes(flags, tmp_path):
    seed = ["--seed", str(2**63 - 1)]
    run_training(flags, tmp_path, *seed, "--max_steps", "1")
    last = run_training(flags, tmp_path, *seed, "--max_steps", "2", "--resume")
    state = load_checkpoint(last)
    assert state["recipe"]["seed"] == 2**63 - 1 and state["step"] == 2


def test_a_notebook_gets_its_signals_back_and_a_thread_can_train(flags, tmp_path):
    flags = [*flags, "--report_to", "tensorboard"]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_training(flags, tmp_path / "one", "--max_steps", "1")
    threads = threading.active_count()
    again = threading.Thread(target=run_training, args=(flags, tmp_path / "two", "--max_steps", "1"))
    again.start()
    again.join()
    assert (tmp_path / "two" / "best_model.pth").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert threading.active_count() == threads, "TensorBoard's ended, too"


def test_a_second_run_in_one_process_may_have_another_precision(flags):
    for precision in ("no", "bf16", "no"):
        run = make_run(flags, "--mixed_precision", precision)
        assert run.accelerator.mixed_precision == precision


def test_accelerate_s_environment_changes_no_weight_and_no_name(flags, monkeypatch):
    plain = make_run(flags, "--grad_accum", "2")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = make_run(flags, "--grad_accum", "2")
    assert run.recipe() == plain.recipe() and run.accelerator.gradient_accumulation_steps == 2
    assert [*run.raw_model.state_dict()] == [*plain.raw_model.state_dict()]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", "set to use FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "set to use DEEPSPEED"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "set to use PARALLELISM_CONFIG"),
        ("ACCELERATE_TORCH_DEVICE", "meta", "--device cpu is cpu here"),
    ],
)
def test_what_accelerate_is_set_to_and_is_not_done_is_refused(monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=said) as refused:
        make_accelerator(TrainConfig(device="cpu", mixed_precision="no"))
    assert variable in str(refused.value)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_without_a_c_library_memory_is_left_as_it_is(monkeypatch):
    def none(name):
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    monkeypatch.setattr(process.ctypes, "CDLL", none)
    with keep_freed_memory("cpu"):
        torch.zeros(3)


# -------------------------------------------------------------------- how they go on


@pytest.fixture(scope="module")
def saved(flags, tmp_path_factory):
    """The state of a run with --grad_accum 2, before its first step."""
    path = tmp_path_factory.mktemp("saved") / "last.pth"
    make_run(flags, "--grad_accum", "2").save(path)
    return path


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--grad_accum", "4"], "with grad_accum x processes = 2, this run has 4: resume with the same"),
        (["--channels", "16", "64"], "channels = [16, 32], this run has [16, 64]: resume with the same"),
        (["--image_size", "64"], "last.pth for what fits of its weights"),
        (
            ["--no-bottleneck_attention", "--shared_film"],
            "bottleneck_attention = True, this run has False; shared_film = False, this run has True: ",
        ),
        (
            ["--cfg_dropout", "0"],
            "with cfg_dropout = 0.1, this run has 0.0: resume with the same",
        ),
        (["--ae_weight", "0.7"], "with ae_weight = 0.1, this run has 0.7: resume with the same"),
        (["--data_fraction", "0.5"], "with images = 28, this run has 14: resume with the same"),
        (["--stage", "guide"], "is of --stage diffusion, this run is of --stage guide: resume with"),
    ],
)
def test_a_setting_that_must_stay_is_named_with_both_values(flags, saved, more, said):
    more = [*([] if "--grad_accum" in more else ["--grad_accum", "2"]), *more]
    with pytest.raises(ValueError) as refused:
        make_run(flags, *more).load(saved)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_learning_rate_validation_images_and_precision_may_change(flags, saved, capsys):
    changed = ["--val_images", "2", "--mixed_precision", "bf16", "--lr", "1e-5"]
    run = make_run(flags, "--grad_accum", "2", *changed)
    run.load(saved)
    said = capsys.readouterr().out
    assert "val_images was 4 so far, and is 2 from here on" in said
    assert "mixed_precision was no so far, and is bf16 from here on" in said
    assert "lr was 0.001 so far, and is 1e-05 from here on" in said and run.recipe()["lr"] == 1e-5


def test_another_precision_of_muon_is_told_and_an_old_file_has_none(flags, saved, tmp_path, capsys):
    run = make_run(flags, "--grad_accum", "2")
    before, run.muon_precision = run.muon_precision, "another"
    run.load(saved)
    assert f"muon_precision was {before} so far, and is another from here on" in capsys.readouterr().out
    state = load_checkpoint(saved)
    del state["recipe"]["muon_precision"]
    torch.save(state, tmp_path / "old.pth")
    run.load(tmp_path / "old.pth")
    assert "muon_precision" not in capsys.readouterr().out


def test_resume_takes_a_file_a_folder_or_the_latest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, other = tmp_path / "own.v1", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "last.pth").touch()
    epoch = own / "epoch_0001.pth"
    epoch.touch()

    def checkpoint_of(resume):
        return CheckpointFiles(TrainConfig(save_dir=str(own), resume=resume)).to_resume()

    assert checkpoint_of("") == checkpoint_of("latest") == checkpoint_of("last") == own / "last.pth"
    assert checkpoint_of("other").resolve() == other / "last.pth"
    assert checkpoint_of(str(epoch)) == epoch
    for nothing in ("nowhere", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="to resume from"):
            checkpoint_of(nothing)


# -------------------------------------------------------------------- what they begin with


def test_what_fits_of_other_weights_is_taken_and_what_does_not_is_named(make_model):
    old = make_model()  # Smiling, Male, Young at 16 pixels
    new = make_model(("Male", "Hat"), image_size=32, prediction="v")
    fresh = {name: weight.clone() for name, weight in new.state_dict().items()}
    text = take_over(new, old, "old.pth")
    before, after = old.state_dict(), new.state_dict()
    for name in before:
        if name.startswith(("unet.down", "unet.middle", "unet.up", "autoencoder.encoder")):
            assert torch.equal(after[name], before[name]), name
    for name, axis in (("unet.condition.name", 0), ("unet.condition.attributes.weight", 1)):
        assert torch.equal(after[name].select(axis, 0), before[name].select(axis, 1)), "Male is Male"
        assert torch.equal(after[name].select(axis, 1), fresh[name].select(axis, 1)), "Hat is new"
    assert "new attributes: Hat" in text and "autoencoder.from_latent" in text
    assert "unet.middle" not in text
    again = make_model()
    assert "new" not in take_over(again, old, "old.pth")
    other = torch.nn.Module()
    other.config = old.config
    with pytest.raises(ValueError, match=r"old.pth has no weight that fits"):
        take_over(new, other, "old.pth")


def test_a_larger_image_takes_the_whole_unet_and_both_ends_of_the_vae(make_model):
    how = {"channels": (16, 32, 32), "patch_size": 2, "self_attention_levels": (0, 2)}
    how |= {"cross_attention_levels": (1,), "shared_film": True}
    old, new = (make_model(image_size=size, **how) for size in (16, 64))
    with torch.no_grad():
        for parameter in old.parameters():  # or some would be drawn alike in both
            parameter += 1
    text = take_over(new, old, "old.pth")
    before, after = old.state_dict(), new.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("unet."))
    for end in (-2, -3):  # its last convolutions, at the image's side; -1 has no weights
        ours, theirs = (model.autoencoder.decoder[end].state_dict() for model in (new, old))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    parts = (
        "encoder.6 encoder.8.0 encoder.8.1 encoder.9 encoder.11.0 encoder.11.1 to_moments from_latent"
    )
    parts += " decoder.1.0 decoder.1.1 decoder.3.0 decoder.3.1"
    assert text.endswith(f"new: {', '.join(f'autoencoder.{part}' for part in parts.split())}")
    take_over(make_model(image_size=16, **how), new, "back.pth")  # and to a smaller one


def test_of_another_width_little_fits(make_model):
    old, new = make_model(), make_model(channels=(32, 64), latent_dim=16, norm="instance")
    text = take_over(new, old, "old.pth")
    assert "new: " in text and "unet.down" in text


def test_new_classes_start_from_old_weights_and_a_resumed_run_needs_them_no_more(
    checkpoint, colours, flags, tmp_path, capsys
):
    old = tmp_path / "old.pth"
    old.write_bytes(checkpoint.read_bytes())
    more = ["--data_root", str(colours), "--cache_dir", str(tmp_path / "cache"), "--init_from", str(old)]
    run_training([*flags, *more], tmp_path, "--max_steps", "1")
    said = capsys.readouterr().out
    assert f"starts from {old}: " in said and "new attributes: blue, green, red" in said
    old.unlink()
    run_training([*flags, *more], tmp_path, "--max_steps", "2", "--resume")
    assert load_checkpoint(tmp_path / "last.pth")["step"] == 2
    assert load_model(tmp_path / "best_model.pth").config.attribute_names[0] == "blue"


@pytest.mark.parametrize(
    ("percents", "given", "expected"),
    [([2.0, 3.0], {}, None), ([70.0, 20.0], {}, "1000"), ([90.0, 90.0], {"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_wait_without_a_fight_beside_other_work(monkeypatch, percents, given, expected):
    """As OpenMP's own variable says. What the user sets stays."""
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: percents)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [0, 1], raising=False)
    devices.share_processors()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
