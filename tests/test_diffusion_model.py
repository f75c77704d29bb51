from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import seeded

from attributes import AttributePrior, attr_dict, create_attribute_vector
from celeba_dataset import load_and_preprocess_image
from config import LossConfig, ModelConfig, SamplingConfig
from diffusion_model import ConditionalDiffusion, drop_attributes
from editing import Editor
from noise_schedule import NoiseSchedule, stratified_timesteps
from samplers import sample_generators


def images(batch: int = 2, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator)


# ------------------------------------------------------------------ loss


def test_total_is_the_weighted_sum_of_what_is_logged(make_model):
    loss = LossConfig(ae_weight=0.3, kl_weight=0.7, attr_weight=0.2)
    terms, per_sample, t = make_model()(images(4), torch.ones(4, 3), loss)
    assert set(terms) == {"total", "diffusion", "reconstruction", "kl", "attributes"}
    autoencoder = terms["reconstruction"] + 0.7 * terms["kl"] + 0.2 * terms["attributes"]
    torch.testing.assert_close(terms["total"], terms["diffusion"] + 0.3 * autoencoder)
    torch.testing.assert_close(per_sample.mean(), terms["diffusion"].detach())
    assert t.shape == per_sample.shape == (4,)
    assert all(value > 0 for value in terms.values())


def test_extra_terms_see_the_prediction_and_train_the_network(make_model):
    def texture(predicted):
        assert predicted.x0_hat.shape == predicted.x_t.shape == (4, 3, 16, 16)
        assert torch.equal(predicted.attributes, rows) and predicted.t.shape == (4,)
        return (predicted.x0_hat - predicted.x0).diff(dim=3).square().mean()

    def run(**extra):
        model.extra_losses = extra
        model.zero_grad()
        torch.manual_seed(0)
        terms, _, _ = model(images(4), rows, LossConfig())
        terms["total"].backward()
        return terms, model.unet.stem.weight.grad.clone()

    model, rows = make_model(), torch.ones(4, 3)
    plain, gradient = run()
    terms, changed = run(texture=(0.3, texture))
    assert terms.keys() - plain.keys() == {"texture"} and terms["texture"] > 0
    torch.testing.assert_close(terms["total"], plain["total"] + 0.3 * terms["texture"])
    assert not torch.equal(gradient, changed)
    terms, same = run(texture=(0.0, texture))
    assert terms["total"] == plain["total"] and torch.equal(gradient, same)
    assert not any("texture" in name for name in model.state_dict())


def test_the_core_needs_no_hub_and_no_editing():
    """What ``import diffusion_model`` brings."""
    code = "import sys, diffusion_model; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "hub", "editing", "flags", "image_data"} & {*modules.stdout.split()}


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_diffusion_loss_is_the_mean_square_against_the_target(make_model, prediction):
    model = make_model(prediction=prediction)
    loss = LossConfig(loss_weighting="none", cfg_dropout=0, attr_dropout=0, latent_dropout=1)
    x0 = model.first_stage.encode(images())
    t, eps = torch.tensor([10, 900]), torch.randn(x0.shape)
    terms, _, _ = model(images(), torch.ones(2, 3), loss, t, eps)
    output = model.unet(model.schedule.q_sample(x0, t, eps), t, torch.ones(2, 3))
    target = NoiseSchedule("cosine").target(prediction, x0, eps, t)
    torch.testing.assert_close(terms["diffusion"], (output - target).pow(2).mean())


def test_timesteps_are_uniform_and_one_from_each_part():
    torch.manual_seed(0)
    drawn = torch.stack([stratified_timesteps(16, 1000, torch.device("cpu")) for _ in range(2000)])
    parts = torch.sort(drawn * 16 // 1000, dim=1).values
    assert (parts == torch.arange(16)).float().mean() > 0.97  # a part's border may lie within a timestep
    assert drawn.min() == 0 and drawn.max() == 999
    mean, deviation = drawn.double().mean(0), (1000**2 / 12) ** 0.5  # of each place in the batch
    assert ((mean - 499.5).abs() < 4.5 * deviation / 2000**0.5).all()
    counts = stratified_timesteps(64, 10, torch.device("cpu")).bincount(minlength=10)
    assert counts.min() >= 5 and counts.max() <= 8  # 6.4 parts each


def test_gradients_reach_the_whole_model_on_conditional_samples(make_model):
    model = make_model()
    loss = LossConfig(cfg_dropout=0, attr_dropout=0, latent_dropout=0)
    terms, _, _ = model(images(), torch.ones(2, 3), loss)
    terms["diffusion"].backward()
    condition = model.unet.condition
    for parameter in (condition.value, condition.attributes.weight, condition.latent.weight):
        assert parameter.grad.abs().max() > 0
    assert model.autoencoder.to_moments.weight.grad.abs().max() > 0  # through the latent token


def test_rows_and_single_attributes_are_dropped_per_sample():
    torch.manual_seed(0)
    rows = torch.ones(20_000, 40)
    whole = drop_attributes(rows, cfg_dropout=0.1, attr_dropout=0.0)
    assert set(whole.sum(1).tolist()) == {0.0, 40.0}
    assert abs((whole.sum(1) == 0).float().mean() - 0.1) < 0.01
    kept = drop_attributes(rows, cfg_dropout=0.0, attr_dropout=0.3).sum(1)
    assert abs((kept == 40).float().mean() - 0.7 - 0.3 / 41) < 0.01
    few = (kept <= 5).float().mean()  # each number of attributes is as frequent as any other
    assert abs(few - 0.3 * 6 / 41) < 0.01, "rows that name a handful of attributes must occur"
    assert torch.equal(drop_attributes(rows, 0.0, 0.0), rows)


def test_dropping_does_not_depend_on_training_mode(make_model):
    model = make_model()
    loss = LossConfig(cfg_dropout=0.5, attr_dropout=0.5, latent_dropout=0.5)
    totals = []
    for mode in (True, False):
        torch.manual_seed(5)
        totals.append(model.train(mode)(images(8), torch.ones(8, 3), loss)[0]["total"])
    assert totals[0] == totals[1]


def test_a_class_is_never_named_in_part(make_model):
    model, seen = make_model(one_hot=True), []
    model.unet.register_forward_hook(lambda module, given, output: seen.append(given[2]))
    rows = -torch.ones(64, 3)
    rows[:, 0] = 1
    model(images(64), rows, LossConfig(cfg_dropout=0.5, attr_dropout=1.0))
    whole = [(row == given).all() or not row.any() for row, given in zip(seen[0], rows, strict=True)]
    assert all(whole)


# ------------------------------------------------------------------ sampling


def test_all_zero_row_is_the_unconditional_branch(make_model):
    model = make_model()
    common = {"num_inference_steps": 4}
    zero = model.ddim_sample(2, attributes=torch.zeros(2, 3), generator=seeded(), **common)
    assert torch.equal(zero, model.ddim_sample(2, attributes=None, generator=seeded(), **common))
    rows = torch.ones(2, 3)
    off = model.ddim_sample(2, attributes=rows, cfg_scale=0.0, generator=seeded(), **common)
    assert torch.equal(zero, off)
    assert not torch.equal(zero, model.ddim_sample(2, attributes=rows, generator=seeded(), **common))


def test_guidance_runs_both_branches_as_one_batch_and_none_when_off(make_model):
    model = make_model()
    batches = []
    model.unet.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))
    model.ddim_sample(3, attributes=torch.ones(1, 3), cfg_scale=2.0, num_inference_steps=2)
    model.ddim_sample(3, attributes=torch.ones(1, 3), cfg_scale=1.0, num_inference_steps=2)
    assert batches == [6, 6, 3, 3]


def test_sampling_is_repeatable_and_the_shape_asked_for(make_model):
    model = make_model()
    first = model.ddim_sample(2, (16, 24), torch.ones(2, 3), 2.0, 3, eta=1.0, generator=seeded())
    again = model.ddim_sample(2, (16, 24), torch.ones(2, 3), 2.0, 3, eta=1.0, generator=seeded())
    assert first.shape == (2, 16, 24, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    other = model.ddpm_sample(2, (16, 24), torch.ones(2, 3), num_inference_steps=3)
    assert other.shape == first.shape


def test_ddpm_walks_the_whole_chain_by_default(make_model):
    model = make_model(num_timesteps=12)
    calls = []
    model.unet.register_forward_hook(lambda module, args, out: calls.append(int(args[1][0])))
    model.ddpm_sample(1)
    assert calls == list(range(11, -1, -1))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
def test_interpolation_shares_one_noise_and_meets_its_ends(make_model, sampler):
    model = make_model()
    start, end = torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[-1.0, 1.0, 0.0]])
    sampling = SamplingConfig(sampler, num_inference_steps=4, cfg_scale=1.0)
    strip = model.interpolate_between_attributes(start, end, 5, sampling, seeded())
    assert strip.shape == (5, 16, 16, 3)
    for frame, row in ((0, start), (4, end), (2, (start + end) / 2)):
        alone = model.sample(1, None, row, sampling, seeded())
        assert (strip[frame].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(strip[0], strip[4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.ddim_sample(2, attributes=torch.ones(3, 3)), r"attributes must be \(2, 3\)"),
        (lambda m: m.ddim_sample(2, attributes=torch.ones(2, 4)), r"got \(2, 4\)"),
        (lambda m: m.ddim_sample(0), "batch_size"),
        (lambda m: m.ddim_sample(1, (15, 16)), "15x16 is not divisible"),
        (lambda m: m.ddim_sample(1, eta=1.5), "eta"),
        (lambda m: m.sample(3, generator=[seeded()] * 2), "2 generators for 3 samples"),
        (lambda m: m.ddim_sample(1, num_inference_steps=0), "num_inference_steps"),
        (lambda m: m.ddim_sample(1, num_inference_steps=5000), "5000"),
        (lambda m: m.interpolate_between_attributes(torch.ones(1, 3), torch.ones(1, 3), 1), "2 steps"),
        (lambda m: Editor(m).edit(images(1), torch.ones(1, 3), strength=1.2), "strength"),
        (lambda m: Editor(m).edit(images(1).float(), torch.ones(1, 3)), "uint8"),
        (lambda m: Editor(m).edit(images(1, 32), torch.ones(1, 3)), "16x16 images, got 32x32"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(make_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(make_model())


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="image_size 60 is not divisible by 8"):
        ConditionalDiffusion(ModelConfig(("a",), image_size=60))
    with pytest.raises(ValueError, match=r"prediction must be one of .*, got 'noise'"):
        ModelConfig(("a",), prediction="noise")
    with pytest.raises(ValueError, match="cfg_dropout"):
        LossConfig(cfg_dropout=1.5)


def test_the_smallest_sides_work_or_are_refused(make_model):
    for side in (4, 6):
        model = make_model(image_size=side)
        assert model.reconstruct(images(2, side)).shape == (2, side, side, 3)
        assert model.ddim_sample(1, num_inference_steps=2).shape == (1, side, side, 3)
    with pytest.raises(ValueError, match="image size 5 is not divisible by 2"):
        make_model(image_size=5, channels=(16,))


def test_the_readme_s_examples_run_as_written(make_model, tmp_path):
    from PIL import Image

    model = make_model(tuple(attr_dict), image_size=64)
    path = tmp_path / "image.jpg"
    Image.fromarray(images(1, 64)[0].numpy()).save(path)

    attr_vector = create_attribute_vector(attr_dict, Smiling=1, Male=0, Young=1)
    samples = model.ddim_sample(batch_size=4, image_size=(64, 64),
        attributes=attr_vector.unsqueeze(0).repeat(4, 1), cfg_scale=2.0,
        num_inference_steps=3)  # fmt: skip
    assert samples.shape == (4, 64, 64, 3)

    interpolated = model.interpolate_between_attributes(
        create_attribute_vector(attr_dict, **{"Male": 1, "Smiling": 0}).unsqueeze(0),
        create_attribute_vector(attr_dict, **{"Male": 0, "Smiling": 1}).unsqueeze(0), num_steps=10,
        sampling=SamplingConfig(num_inference_steps=2))  # fmt: skip
    assert interpolated.shape == (10, 64, 64, 3)

    source_image = load_and_preprocess_image(path)
    target_attrs = create_attribute_vector(attr_dict, Smiling=1, Eyeglasses=1)
    manipulated = Editor(model).edit(
        source_image, target_attrs.unsqueeze(0), strength=0.8, num_inference_steps=2
    )
    assert manipulated.shape == (1, 64, 64, 3)


def test_a_size_may_be_one_side_and_what_is_no_size_is_one_line(make_model):
    model = make_model()
    sampling = SamplingConfig(num_inference_steps=1)
    assert model.sample(2, 32, None, sampling, seeded()).shape == (2, 32, 32, 3)
    square = model.sample(1, (32, 32), {"Smiling": 1}, sampling, seeded())
    assert torch.equal(square, model.sample(1, 32, {"Smiling": 1}, sampling, seeded()))
    for wrong in ({"Smiling": 1}, {"Smiling": 1, "Male": 0}, "64", 64.0, (64,), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"image_size is .* or one side, got .*attributes=\{...\}"):
            model.sample(2, wrong)


def test_weights_in_half_precision_are_refused_and_autocast_is_named(make_model):
    half, words = make_model().half(), r"weights are torch.float16: .*float\(\).*autocast\(\"cpu\""
    for call in (
        lambda: half.sample(1, attributes={"Smiling": 1}),
        lambda: half.interpolate_between_attributes({"Male": 1}, {"Male": 0}, 2),
        lambda: half.predict_attributes(images()),
        lambda: Editor(half).edit(images(), {"Smiling": 1}),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_an_image_has_its_own_generator_and_its_own_latent(make_model):
    """In a batch as alone: where the row before it is complete, and under guidance."""
    rows = torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])
    model = make_model(prior_rows=4)
    model.attribute_prior = AttributePrior.of(rows)
    requests = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    whole = model.complete_rows(requests, generator=sample_generators(0, range(4)))
    for i in range(4):
        alone = model.complete_rows(requests[i : i + 1], generator=sample_generators(0, [i]))
        assert torch.equal(whole[i], alone[0])
    assert len(whole.unique(dim=0)) > 1

    latents, sampling = 3 * torch.randn(2, 8), SamplingConfig(num_inference_steps=2, cfg_scale=3.0)
    options = {"sampling": sampling, "latent": latents}
    both = model.sample(2, None, rows[:2], generator=sample_generators(0, range(2)), **options)
    for i in range(2):
        options["latent"] = latents[i : i + 1]
        one = model.sample(1, None, rows[i : i + 1], generator=sample_generators(0, [i]), **options)
        assert (both[i].int() - one[0].int()).abs().max() <= 1
