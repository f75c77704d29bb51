"""What a GPU would refuse, without a GPU. Tensors claim to be on cuda, and torch's FakeTensorMode checks
every operation on them: two devices are an error, as on a GPU. Their values are computed on the CPU
beside it. So a wrong dtype is an error, too, code that reads values back runs to its end, and what is
drawn can be compared with what the CPU draws. No kernel of CUDA runs.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

import attributes
import layers
import noise_schedule
from attributes import AttributePrior
from autoencoder_model import PixelFirstStage
from checkpoint import EMA
from classifiers.guide import GuidanceClassifier
from classifiers.judge import Judge, train_judge
from classifiers.likeness import perceptual_distance
from classifiers.probe import Probe
from config import (
    EditConfig,
    FirstStageConfig,
    FirstStageLossConfig,
    LossConfig,
    ModelConfig,
    SamplingConfig,
)
from diffusion_model import ConditionalDiffusion
from editing import Editor
from evaluation.base import read
from evaluation.edits import Task, measure
from latent_vae import SpatialVAE
from samplers import SAMPLERS, sample_generators
from studio import draw
from training import monitoring
from training.encoding import encode_images
from training.first_stage_loss import FirstStageTraining
from training.monitoring import validate
from training.optimizers import OPTIMIZERS
from training.stages import STAGES

fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor", reason="torch has no FakeTensorMode")
FakeTensor = fake_tensor.FakeTensor

NAMES = ("Smiling", "Male", "Young")
SMALL = {"image_size": 8, "channels": (8,), "num_heads": 2, "blocks_per_level": 1}
SMALL |= {"self_attention_levels": (), "cross_attention_levels": ()}  # at the bottleneck alone
SD_VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.25,
}
FIRST_STAGES = {
    "pixels": {},
    "vae": {"channels": (8,), "num_attributes": 3},
    "upscaler": {"width": 8, "detail_width": 8},
    "sd-vae": SD_VAE,
}
ROWS = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
PICTURES = torch.randint(0, 256, (2, 8, 8, 3), generator=torch.Generator().manual_seed(1)).byte()


# These may mix devices on a GPU, too. What they give is where their first argument is.
ATEN = torch.ops.aten
MIXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_, ATEN.copy_}


class FakeCuda(fake_tensor.FakeTensorMode):
    """Within it, a tensor on cuda is a FakeTensor, with its value on the CPU as ``twin``. Tensors on
    the CPU are real."""

    refused: torch.dtype | None = None  # a dtype that the device does not have

    def put(self, twin: Tensor, device: str = "cuda:0") -> FakeTensor:
        """A tensor that claims to be on a device."""
        if twin.dtype == self.refused and device != "cpu":
            raise TypeError(f"the device has no {twin.dtype}")
        with _disable_current_modes():
            shape = torch.empty_like(twin, device="meta")
        fake = FakeTensor(self, shape, torch.device(device))
        fake.twin = twin
        return fake

    def move(self, module: nn.Module) -> nn.Module:
        """The same module with its weights and buffers on cuda."""
        for part in module.modules():
            for name, each in part._parameters.items():
                if each is not None:
                    part._parameters[name] = nn.Parameter(self.put(each.detach()), each.requires_grad)
            for name, each in part._buffers.items():
                part._buffers[name] = None if each is None else self.put(each)
        return module

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        fakes = [each for each in given if isinstance(each, FakeTensor)]
        if func is torch.ops.prim.device.default:
            return fakes[0].device
        device = torch.device("cpu")
        if kwargs.get("device") is not None:
            device, kwargs = torch.device(kwargs["device"]), kwargs | {"device": "cpu"}
        elif func.overloadpacket in MIXING:
            device = args[0].device
        elif fakes:  # an error if there are two devices
            claims = [each if isinstance(each, FakeTensor) else self.put(each, "cpu") for each in given]
            device, _ = FakeTensor._find_common_device(func, claims)
        args, kwargs = tree_map_only(FakeTensor, lambda fake: fake.twin, (args, kwargs))
        values = func(*args, **kwargs)
        if device.type == "cpu":
            return values
        # What an operation in place gives back is what it was given.
        same = {id(fake.twin): fake for fake in fakes}
        return tree_map_only(Tensor, lambda x: same[id(x)] if id(x) in same else self.put(x), values)


def no_gradient(outputs: Tensor, inputs: Tensor, **how: bool) -> tuple[Tensor]:
    """Zeros in place of torch.autograd.grad, whose engine asks the driver for the device."""
    assert outputs.requires_grad and inputs.requires_grad and outputs.device == inputs.device
    return (torch.zeros_like(inputs),)


@pytest.fixture
def gpu(monkeypatch):
    """A ``FakeCuda``, on which autocast works as on a GPU that is there."""
    # Autograd counts the devices once. Later it would find one here, and refuse to work after a fork.
    torch.ones(1, requires_grad=True).sum().backward()
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: True)
    monkeypatch.setattr(torch.autograd, "grad", no_gradient)
    monkeypatch.setattr(Tensor, "backward", lambda self: no_gradient(self, self))
    # The other kernels are not on a CPU.
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield FakeCuda(allow_non_fake_inputs=True)


def seeded(make):
    """What ``make`` makes, every weight drawn: none is left at its zero initialisation."""
    torch.manual_seed(0)
    module = make()
    for each in module.parameters():
        if not each.any():
            nn.init.normal_(each, std=0.05)
    return module.eval()


def small_model(first_stage="pixels"):
    stage = {"first_stage": first_stage, "first_stage_config": FIRST_STAGES[first_stage]}

    def make():
        model = ConditionalDiffusion(ModelConfig(NAMES, latent_dim=8, prior_rows=2, **SMALL, **stage))
        model.attribute_prior = AttributePrior.of(torch.tensor([[1.0, 1, -1], [-1, 1, 1]]))
        return model

    return seeded(make)


def small_guide(first_stage="pixels"):
    stage = {"first_stage": first_stage, "first_stage_config": FIRST_STAGES[first_stage]}
    return seeded(lambda: GuidanceClassifier(ModelConfig(NAMES, **SMALL, **stage)))


def assert_as_on_the_cpu(gpu, work, *makers, atol=2.0):
    """``work`` of modules on cuda gives what it gives on the CPU, up to rounding, but on cuda."""
    here, there = ([make() for make in makers] for _ in range(2))
    torch.manual_seed(1)
    expected = work(*here)
    with gpu:
        torch.manual_seed(1)
        found = work(*map(gpu.move, there))
        assert found.device.type == "cuda" and found.dtype == expected.dtype
    torch.testing.assert_close(found.twin.float(), expected.float(), atol=atol, rtol=1e-3)


@pytest.mark.parametrize("first_stage", FIRST_STAGES)
@pytest.mark.parametrize("make", [small_model, small_guide])
def test_losses_under_autocast(gpu, make, first_stage):
    if first_stage == "sd-vae":
        pytest.importorskip("diffusers")
    with gpu:
        model, dtypes = gpu.move(make(first_stage)).train(), set()
        network = model.unet if make is small_model else model.network
        network.stem.register_forward_hook(lambda module, given, out: dtypes.add(out.dtype))
        with torch.autocast("cuda", torch.bfloat16):
            terms, per_sample, t = model(gpu.put(PICTURES), gpu.put(ROWS), LossConfig())
        terms["total"].backward()
        assert dtypes == {torch.bfloat16} and terms["total"].dtype == torch.float32
        assert {per_sample.device.type, t.device.type} == {"cuda"}
        assert np.isfinite(terms["total"].item())


def test_the_loss_of_a_first_stage_under_autocast(gpu):
    config = FirstStageConfig(NAMES, vae_channels=(8,))
    stages = nn.ModuleList(Probe().stages())
    module = seeded(lambda: FirstStageTraining(config, SpatialVAE(**config.network()), stages))
    with gpu, torch.autocast("cuda", torch.bfloat16):
        module = gpu.move(module).train()
        module.progress = 1.0  # with the discriminator
        terms, _, _ = module(gpu.put(PICTURES), gpu.put(ROWS), FirstStageLossConfig())
        terms["total"].backward()
        assert {"adversarial", "perceptual"} <= terms.keys()
        assert module.reconstruct(gpu.put(PICTURES)).device.type == "cuda"


@pytest.mark.parametrize(
    ("sampler", "guidance"), [*((name, "both") for name in SAMPLERS), ("ddim", "guide")]
)
def test_sampling(gpu, sampler, guidance):
    sampling = SamplingConfig(sampler, 2, cfg_scale=2.0, guide_scale=1.0, guidance=guidance)

    def work(model, guide):
        generators = sample_generators(0, range(2))
        return model.sample(2, None, [{"Smiling": 1}, {"Male": 0}], sampling, generators, guide=guide)

    assert_as_on_the_cpu(gpu, work, small_model, small_guide)


def test_sampling_with_the_device_s_own_noise_and_in_latents(gpu):
    sampling = SamplingConfig("ddim", 2, eta=1.0)
    assert_as_on_the_cpu(gpu, lambda model: model.sample(2, None, {"Male": 1}, sampling), small_model)
    assert_as_on_the_cpu(
        gpu, lambda model: model.ddim_sample(2, None, None, 1.0, 2), lambda: small_model("vae")
    )


@pytest.mark.parametrize(("guided", "first_stage"), [(False, "vae"), (True, "pixels")])
def test_edits(gpu, guided, first_stage):
    def work(model, guide):
        guide, how = guide if guided else None, EditConfig(num_inference_steps=2)
        generator = torch.Generator().manual_seed(0)
        edit_at = Editor(model).prepare_edit(
            PICTURES[:1], [{"Smiling": 1}, {"Male": 1}], how, guide=guide, generator=generator
        )
        edited = Editor(model).edit(PICTURES, {"Young": 0}, guide=guide, editing=how)
        return torch.cat([edit_at(0.0), edit_at(0.5), edited])

    assert_as_on_the_cpu(gpu, work, lambda: small_model(first_stage), lambda: small_guide(first_stage))


INTERPOLATIONS = {
    "requests": lambda model: model.interpolate_between_attributes(
        {"Male": 1}, {"Male": 0}, 3, SamplingConfig(num_inference_steps=2)
    ),
    "photographs": lambda model: Editor(model).interpolate(PICTURES, 3, 2),
    "inversion": lambda model: Editor(model).invert(PICTURES, ROWS, num_inference_steps=2),
    "reconstruction": lambda model: model.reconstruct(PICTURES),
    "ddpm": lambda model: model.ddpm_sample(2, num_inference_steps=2),
}


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_the_rest_of_the_model(gpu, name):
    assert_as_on_the_cpu(gpu, INTERPOLATIONS[name], small_model)


def test_what_networks_read(gpu):
    def reads(model, guide):
        return torch.cat([model.predict_attributes(PICTURES, guide), model.predict_attributes(PICTURES)])

    def odds(guide):
        guide.set_prior(ROWS)
        return guide.log_odds(guide.first_stage.encode(PICTURES.to(guide.prior.device)), 3)

    assert_as_on_the_cpu(gpu, reads, small_model, small_guide, atol=1e-4)
    assert_as_on_the_cpu(gpu, odds, small_guide, atol=1e-4)
    images = gpu.put(PICTURES)
    with gpu:
        assert gpu.move(Probe().eval())(images).device.type == "cuda"


def test_a_judge_is_trained_and_measures(gpu, monkeypatch):
    faces = SimpleNamespace(attribute_names=NAMES, images=PICTURES.numpy(), attributes=ROWS, flips=True)
    torch.manual_seed(0)
    monkeypatch.setattr(Judge, "to", lambda self, *where, **how: gpu.move(self))
    with gpu:
        judge = train_judge(faces, 1, device="cuda")
        features, logits = read(judge, PICTURES)
        assert features.shape == (2, 128) and logits.shape == (2, 3)
        task, mask = Task("Male", 1, 1), torch.ones(8, 8, dtype=torch.bool)
        edits = (PICTURES, PICTURES.flip(2), task, mask, PICTURES)
        figures = measure(judge, features.mean(0), *edits)
        assert {each.device.type for each in figures.values()} == {"cpu"}
        images = gpu.put(PICTURES)
        distance = perceptual_distance(judge.stages(), judge.input(images), judge.input(images.flip(2)))
        assert distance.device.type == "cuda"


def test_the_work_of_a_run_and_of_reports(gpu):
    model, guide, stage = small_model(), small_guide(), small_model("vae").first_stage
    with gpu:
        model, guide, stage = map(gpu.move, (model, guide, stage))
        autocast = torch.autocast("cuda", torch.bfloat16)
        with autocast:
            assert draw(model, ROWS, SamplingConfig(num_inference_steps=2)).device.type == "cpu"
        (moments,) = encode_images(stage, autocast, PICTURES.numpy(), 2, "cuda")
        assert moments.shape == (2, 2, 8, 4, 4) and moments.dtype == np.float16
        images = gpu.put(PICTURES)
        assert guide.read_logits(images).device.type == "cuda"
        assert np.isfinite(validate(a_run(gpu, "diffusion", model, autocast))["total"])
        for make in OPTIMIZERS.values():
            weights = [*model.unet.middle.parameters()]
            for each in weights:
                each.grad = torch.ones_like(each)
            make(weights, model.unet.middle.modules(), 1e-3, 0.1, bf16=True).step()
        average = EMA(small_model(), 0.9)
        gpu.move(average.model)
        average.update(model, 3)


def a_run(gpu, kind, model, autocast):
    """As much of a ``TrainingRun`` as ``validate`` needs."""
    return SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, process_index=0, autocast=lambda: autocast),
        ema=SimpleNamespace(model=model),
        stage=STAGES[kind],
        loss_config=LossConfig(),
        config=SimpleNamespace(batch_size=2),
        val_set=SimpleNamespace(attribute_names=NAMES),
        num_validation_images=2,
        progress=0.5,
        validation_images=lambda indices: (gpu.put(PICTURES), gpu.put(ROWS)),
    )


# -------------------------------------------------------------------- what must fail


def joint_loss(gpu):
    with gpu:
        return gpu.move(small_model())(gpu.put(PICTURES), gpu.put(ROWS), LossConfig())


def test_a_planted_move_to_the_cpu_is_caught(gpu, monkeypatch):
    whole = PixelFirstStage.encode
    monkeypatch.setattr(PixelFirstStage, "encode", lambda *how, **more: whole(*how, **more).cpu())
    with pytest.raises(RuntimeError, match="on the same device"):
        joint_loss(gpu)


def test_a_planted_tensor_without_a_device_is_caught(gpu, monkeypatch):
    import diffusion_model

    keep = lambda attributes, *rates: attributes * torch.zeros(len(attributes), 1)  # noqa: E731
    monkeypatch.setattr(diffusion_model, "drop_attributes", keep)
    with pytest.raises(RuntimeError, match="on the same device"):
        joint_loss(gpu)


def test_a_planted_dtype_is_caught(gpu, monkeypatch):
    embed = layers.sinusoidal_embedding
    monkeypatch.setattr(layers, "sinusoidal_embedding", lambda *how: embed(*how).half())
    with pytest.raises(RuntimeError, match="dtype"):
        joint_loss(gpu)


# -------------------------------------------------------------------- Apple's GPUs


def test_apple_s_gpus_get_no_float64(gpu, monkeypatch):
    gpu.refused = torch.float64
    with pytest.raises(TypeError, match=r"no torch\.float64"):
        joint_loss(gpu)
    for module in (noise_schedule, attributes, monitoring):
        monkeypatch.setattr(module, "widest", lambda device: layers.widest(torch.device("mps")))
    joint_loss(gpu)
    with gpu:
        model, guide = gpu.move(small_model()), gpu.move(small_guide())
        validate(a_run(gpu, "guide", guide, nullcontext()))
        sampling = SamplingConfig("dpm_solver", 2, guide_scale=1.0, eta=0.5)
        model.sample(2, None, {"Male": 1}, sampling, guide=guide)
        model.interpolate_between_attributes({"Male": 1}, {"Male": 0}, 2, sampling, guide=guide)
        Editor(model).interpolate(PICTURES, 2, 2)
        Editor(model).edit(PICTURES, {"Male": 1}, guide=guide, num_inference_steps=2)
        model.attribute_prior.frequencies(gpu.put(ROWS))
