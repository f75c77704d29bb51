from __future__ import annotations

import pytest
import torch
from helpers import draw_zeros

import unet_model
from layers import sinusoidal_embedding
from unet_model import Attention, AttributeMaps, ConditionalUNet, ConditionEmbedding, attend


def make_unet(**changes) -> ConditionalUNet:
    torch.manual_seed(0)
    small = {
        "channels": (16, 32),
        "num_attributes": 5,
        "latent_dim": 8,
        "num_heads": 2,
        "blocks_per_level": 1,
        "self_attention_levels": (1,),
        "cross_attention_levels": (0, 1),
    }
    unet = ConditionalUNet(**small | changes)
    draw_zeros(unet, std=0.1)
    return unet


def inputs(batch: int = 2, height: int = 16, width: int = 16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, height, width, generator=generator)
    t = torch.randint(1000, (batch,), generator=generator)
    attributes = torch.randn(batch, 5, generator=generator).sign()
    return x, t, attributes, torch.randn(batch, 8, generator=generator)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_output_has_the_input_s_shape(patch_size, size):
    x, t, attributes, latent = inputs(2, *size)
    assert make_unet(patch_size=patch_size)(x, t, attributes, latent).shape == x.shape


def test_embeddings_are_as_wide_as_asked():
    x, t, attributes, latent = inputs()
    unet = make_unet(attr_emb_dim=24, time_emb_dim=40)
    assert unet.condition.name.shape == (5, 24) and unet.condition.time[2].weight.shape == (40, 40)
    assert unet(x, t, attributes, latent).shape == x.shape
    usual = make_unet()
    assert usual.condition.name.shape == (5, 128) and usual.condition.time[2].weight.shape == (512, 512)
    with pytest.raises(ValueError, match="multiple of 4, got 42"):
        make_unet(time_emb_dim=42)


def test_in_a_perturbed_sample_each_position_sees_itself_alone():
    """So it is as in a picture of one position, and the other samples are as without."""
    attention = Attention(8, 2)
    attention.norm = torch.nn.Identity()
    draw_zeros(attention, std=0.5)
    x, perturbed = (
        torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([True, False]),
    )
    y = attention(x, perturbed=perturbed)
    alone = attention(x[:1].permute(0, 2, 3, 1).reshape(9, 8, 1, 1))
    torch.testing.assert_close(y[0], alone.view(3, 3, 8).permute(2, 0, 1))
    torch.testing.assert_close(y[1], attention(x)[1])
    assert (y[0] - attention(x)[0]).abs().max() > 0.01


@pytest.mark.parametrize(("levels", "places"), [((0, 1), [0, 0]), ((1,), [1, 1]), ((), [-1])])
def test_the_finest_self_attention_is_perturbed(levels, places):
    """Down and up, or else that of the bottleneck; the other samples of the batch stay."""
    unet = make_unet(self_attention_levels=levels).eval()
    seen = []
    for place, blocks in [*enumerate(unet.down), (-1, unet.middle), *zip((1, 0), unet.up, strict=True)]:
        for block in blocks:
            if block.self_attention is not None:
                note = lambda _, __, options, place=place: seen.append((place, options["perturbed"]))  # noqa: E731
                block.self_attention.register_forward_pre_hook(note, with_kwargs=True)
    x, t, attributes, latent = inputs()
    perturbed = torch.tensor([True, False])
    y = unet(x, t, attributes, latent, perturbed=perturbed)
    assert [place for place, given in seen if given is not None] == places
    plain = unet(x, t, attributes, latent)
    torch.testing.assert_close(y[1], plain[1])
    assert (y[0] - plain[0]).abs().max() > 1e-4


def test_attribute_maps_add_up_at_any_size():
    maps = AttributeMaps(5, 6, side=4)
    _, _, attributes, _ = inputs()
    assert not maps(attributes, (4, 4)).any()  # an untrained network starts without them
    for parameter in maps.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    each = maps.maps.unflatten(1, (6, 4, 4))
    expected = maps.always.view(6, 4, 4) + sum(attributes[1, i] * each[i] for i in range(5))
    torch.testing.assert_close(maps(attributes, (4, 4))[1], expected)
    torch.testing.assert_close(maps(torch.zeros(1, 5), (4, 4))[0], maps.always.view(6, 4, 4))
    whole = maps(attributes, (8, 12))
    assert whole.shape == (2, 6, 8, 12)
    exact = maps(attributes, (4, 4))
    torch.testing.assert_close(whole.mean((2, 3)), exact.mean((2, 3)), atol=0.1, rtol=0)


def test_default_configuration_has_about_63_million_parameters():
    with torch.device("meta"):
        unet = ConditionalUNet()
    assert 60e6 < sum(p.numel() for p in unet.parameters()) < 66e6


def test_size_that_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"18x16.*divisible by 4"):
        make_unet(patch_size=2)(*inputs(2, 18, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"self_attention_levels": (2,)}, "level 2"), ({"num_heads": 3}, "3 attention heads")],
)
def test_impossible_attention_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_unet(**changes)


def test_starts_as_zero_and_every_parameter_learns():
    """The output convolution starts at zero; once off it, gradients reach everything."""
    x, t, attributes, latent = inputs()
    assert not ConditionalUNet((3), (32, 64), 5, 8, self_attention_levels=(1,),
                               cross_attention_levels=(1,))(x, t, attributes, latent).any()  # fmt: skip
    unet = make_unet()
    keep = torch.tensor([1.0, 0.0])
    unet(x, t, attributes, latent, keep).pow(2).sum().backward()
    silent = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_written_out_is_the_fused_one(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 20, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    found = []
    for most in (0, 10**9):
        monkeypatch.setattr(unet_model, "WRITTEN_OUT", most)
        inputs = [torch.randn(s, generator=generator.manual_seed(1)).to(dtype) for s in shapes]
        inputs = [each.requires_grad_() for each in inputs]
        out = attend(*inputs)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for fused, written in zip(*found, strict=True):
        torch.testing.assert_close(fused, written, **tolerance)


def test_attention_of_many_positions_keeps_no_square(monkeypatch):
    """At 64 x 64 positions one copy of all pairs would be 67 MB a head."""
    kept = []
    query = torch.randn(1, 2, 4096, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes), lambda x: x):
        attend(query, query, query)
    assert sum(kept) < 5e6


def test_cross_attention_attends():
    """With several tokens the attention's weights depend on the picture: cross-attention alone (the
    summed embedding switched off) adds something different at different positions."""
    unet = make_unet()
    torch.nn.init.zeros_(unet.condition.attributes.weight)
    attention = unet.down[1][0].cross_attention
    seen = []
    attention.register_forward_hook(lambda module, args, out: seen.append(out - args[0]))
    x, t, attributes, _ = inputs(1)
    out = unet(x, t, attributes)
    added = seen[0]
    assert added.std(dim=(2, 3)).mean() > 0.01 * added.abs().mean()
    flipped = attributes.clone()
    flipped[0, 2] *= -1
    assert (unet(x, t, flipped) - out).abs().max() > 1e-4


def test_no_latent_equals_every_latent_dropped():
    x, t, attributes, latent = inputs()
    unet = make_unet()
    dropped = unet(x, t, attributes, latent, torch.zeros(2))
    torch.testing.assert_close(dropped, unet(x, t, attributes, None))
    assert (unet(x, t, attributes, latent) - dropped).abs().max() > 1e-3


def test_latent_is_dropped_per_sample():
    x, t, attributes, latent = inputs()
    unet = make_unet()
    mixed = unet(x, t, attributes, latent, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(mixed[:1], unet(x[:1], t[:1], attributes[:1], latent[:1]))
    torch.testing.assert_close(mixed[1:], unet(x[1:], t[1:], attributes[1:]))


def test_attributes_act_continuously():
    """A fraction lands between its ends, and nearer to the nearer one."""
    x, t, attributes, _ = inputs(1)
    unet = make_unet()

    def at(value: float) -> torch.Tensor:
        row = attributes.clone()
        row[0, 1] = value
        return unet(x, t, row)

    low, middle, high = at(-1), at(0.5), at(1)
    span = (high - low).norm()
    assert span > 1e-3
    assert 0 < (middle - high).norm() < (middle - low).norm() < span


def test_gains_of_the_levels_do_not_multiply():
    """Scaling what one level hands to the next changes what arrives at the last by no more."""
    unet, arrived = make_unet(channels=(16, 16, 32), self_attention_levels=()), []
    unet.up[-1][0].register_forward_pre_hook(lambda block, given: arrived.append(given[0].std()))
    with torch.no_grad():
        unet(*inputs())
        for resampling in (*unet.downsample, *unet.upsample):
            resampling[-1].weight *= 100
        unet(*inputs())
    assert arrived[1] < 150 * arrived[0]  # not 100 to the power of four


def test_sinusoidal_embedding_tells_timesteps_apart():
    embedding = sinusoidal_embedding(torch.arange(1000), 128)
    assert embedding.shape == (1000, 128)
    distance = torch.cdist(embedding, embedding) + 10 * torch.eye(1000)
    assert distance.min() > 0.1


def test_gradient_checkpointing_leaves_output_and_gradients_as_they_are():
    gradients = []
    for checkpointing in (False, True):
        unet = make_unet()
        unet.gradient_checkpointing = checkpointing
        calls = []
        unet.middle[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        unet(*inputs()).square().mean().backward()
        assert len(calls) == 1 + checkpointing  # once more in the backward pass
        gradients.append([p.grad for p in unet.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_without_any_attention_attributes_still_reach_the_picture():
    """No parameter is left without a gradient, which several processes would wait for."""
    torch.manual_seed(0)
    options = {"self_attention_levels": (), "cross_attention_levels": (), "bottleneck_attention": False}
    unet = ConditionalUNet(channels=(8, 16), num_attributes=3, latent_dim=4, num_heads=2, **options)
    assert not any(isinstance(module, Attention) for module in unet.modules())
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, latent = torch.randn(2, 3, 16, 16), torch.tensor([3, 500]), torch.randn(2, 4)
    first, second = (unet(x, t, rows, latent) for rows in (torch.ones(2, 3), -torch.ones(2, 3)))
    assert (first - second).abs().max() > 1e-3
    first.square().sum().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())


def test_tokens_are_affine_in_the_attributes():
    condition = ConditionEmbedding(2, 0, 8, 16)
    condition.norm = torch.nn.Identity()
    ends = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    low, high, middle = condition(torch.zeros(3), ends, None, None)[1]
    torch.testing.assert_close(middle, (low + high) / 2)
    part = condition(torch.zeros(1), torch.lerp(ends[:1], ends[1:2], 0.3), None, None)[1][0]
    torch.testing.assert_close(part, torch.lerp(low, high, 0.3))


def test_recomputed_blocks_drop_the_same():
    """Gradients with and without checkpointing agree under dropout, too."""
    unet, (x, t, attributes, latent) = make_unet(dropout=0.5).train(), inputs()
    gradients = []
    for unet.gradient_checkpointing in (False, True):
        torch.manual_seed(3)
        unet.zero_grad()
        unet(x, t, attributes, latent).square().sum().backward()
        gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
