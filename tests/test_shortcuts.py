"""Which convolutions see joined tensors: against what the UNet really joins when it runs."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from pipelines import denoiser_of, tiny_sd, tiny_sd3, tiny_sdxl
from torch import nn

from halftone.layers import SplitConv2d
from halftone.shortcuts import joined_convolutions, split_layers


def _deep():
    """Three resolutions, two resnets each, as wide as no other: what is joined has many different widths."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def _unconditional():
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
    )


UNETS = {
    "sd": lambda: denoiser_of(tiny_sd()),
    "sdxl": lambda: denoiser_of(tiny_sdxl()),
    "deep": _deep,
    "unconditional": _unconditional,
}


def _run(unet):
    torch.manual_seed(0)
    x, arguments = torch.randn(1, unet.config.in_channels, 8, 8), {}
    if isinstance(unet, UNet2DConditionModel):
        arguments["encoder_hidden_states"] = torch.randn(1, 5, unet.config.cross_attention_dim)
    if getattr(unet.config, "addition_embed_type", None) == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        arguments["added_cond_kwargs"] = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        return unet(x, 7, **arguments).sample


@pytest.mark.parametrize("name", UNETS)
def test_halves_are_what_is_joined(name, monkeypatch):
    """Every `torch.cat` of two images within an up-block, in the order in which the resnets take them."""
    unet, joined = UNETS[name](), []
    cat = torch.cat

    def note(tensors, dim=0, **kwargs):
        if dim == 1 and len(tensors) == 2 and tensors[0].dim() == 4:
            joined.append((tensors[0].shape[1], tensors[0].shape[1] + tensors[1].shape[1]))
        return cat(tensors, dim=dim, **kwargs)

    monkeypatch.setattr(torch, "cat", note)
    before = _run(unet)
    monkeypatch.undo()
    found = joined_convolutions(unet)
    firsts = {layer: channels for layer, channels in found.items() if layer.endswith("conv1")}
    totals = [unet.get_submodule(layer).in_channels for layer in firsts]
    assert list(zip(firsts.values(), totals, strict=True)) == joined and joined
    for layer, channels in firsts.items():
        assert found[layer.replace("conv1", "conv_shortcut")] == channels
    split_layers(unet, found)
    torch.testing.assert_close(_run(unet), before, rtol=1e-4, atol=1e-5)
    assert joined_convolutions(unet) == found
    again = [unet.get_submodule(layer) for layer in found]
    split_layers(unet, found)
    assert all(
        isinstance(one, SplitConv2d) and one is unet.get_submodule(n) for one, n in zip(again, found, strict=True)
    )


def test_by_hand():
    """tiny_sd, channels (8, 16), one resnet a block: kept are conv_in 8, resnet 8, downsampler 8, resnet 16."""
    assert joined_convolutions(tiny_sd().unet) == {
        f"up_blocks.{block}.resnets.{place}.{part}": hidden
        for (block, place), hidden in {(0, 0): 16, (0, 1): 16, (1, 0): 16, (1, 1): 8}.items()
        for part in ("conv1", "conv_shortcut")
    }


def test_what_is_built_differently_is_left_alone():
    assert joined_convolutions(tiny_sd3().transformer) == {} == joined_convolutions(nn.Linear(2, 2))
    unet = tiny_sd().unet
    unet.up_blocks[0].resnets[0].in_channels += 1
    assert joined_convolutions(unet) == {}
    unet = tiny_sd().unet
    unet.up_blocks.append(nn.Module())
    assert joined_convolutions(unet) == {}
    unet = tiny_sd().unet
    unet.down_blocks[1].resnets[0] = nn.Identity()
    assert joined_convolutions(unet) == {}
