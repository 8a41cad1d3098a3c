"""Lockstep against the definition: restart every prompt from noise for every step.

`_Restart` is that definition written down naively. It shares the quantized layers with the package (they are tested by
themselves) but not the lockstep, micro-batches, observers, slots, choice of layers or parameters.
"""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pipelines import denoiser_of, tiny_sd, tiny_sd3, tiny_sdxl

import halftone
from halftone.calibration import pipeline_call
from halftone.calibration.lockstep import normal_draw
from halftone.denoiser import set_submodule
from halftone.layers import ExecutionMode, quantize_layer, quantized_layers
from halftone.timesteps import SlotClock, TimestepSlots

PROMPTS = ("a red cube", "a blue ball", "x")
STEPS = 4
# Layers that stay in floating point: first, last and what embeds timestep and pooled text (SD, SDXL; SD3).
KEPT = ("conv_in", "conv_out", "time_embedding", "add_embedding", "pos_embed.proj", "time_text_embed", "proj_out")
KEPT_IN_SD3 = (*KEPT, "norm_out")

CASES = {
    "sd": (tiny_sd, {"guidance_scale": 7.5}, 4),
    "sd without guidance": (tiny_sd, {"guidance_scale": 1.0}, 4),
    "sd one prompt at a time": (tiny_sd, {"guidance_scale": 7.5}, 1),
    "sd uneven micro-batches": (tiny_sd, {"guidance_scale": 7.5}, 2),
    "sd pndm": (lambda: tiny_sd(scheduler="pndm"), {"guidance_scale": 7.5}, 4),
    "sdxl": (tiny_sdxl, {"guidance_scale": 5.0}, 4),
    "sdxl one prompt at a time": (tiny_sdxl, {"guidance_scale": 5.0}, 1),
    "sd3": (tiny_sd3, {"guidance_scale": 7.0}, 4),
}


class _Stop(Exception):
    pass


class _Restart:
    """Restart-from-noise progressive calibration of `pipeline`, 8-bit, min-max; a table row for each *call*."""

    def __init__(self, pipeline, call_kwargs, rows, steps=STEPS):
        self.pipeline, self.module, self.rows = pipeline, denoiser_of(pipeline), rows
        self.float_forward = self.module.forward
        self.arguments = {"num_inference_steps": steps, "output_type": "latent", **call_kwargs}
        calls = steps + 1  # PNDM makes one more
        self.clock = SlotClock(TimestepSlots(tuple(range(calls)), (8,) * calls))
        kept = KEPT_IN_SD3 if hasattr(self.module, "norm_out") else KEPT
        self.layers = {}
        for name, layer in list(self.module.named_modules()):
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and not name.startswith(kept):
                self.layers[name] = quantize_layer(layer, 8, calls, name)
                self.layers[name].clock = self.clock
                set_submodule(self.module, name, self.layers[name])
        self.timesteps = []
        self.seen = {}  # (layer, call) -> (lo, hi)
        self.starts = 0

    def run(self):
        """Latents of the last run, in which every call is quantized."""
        self.module.forward = self._forward
        while True:
            self.call = 0
            self.starts += 1
            generators = [torch.Generator().manual_seed(5 + index) for index in range(len(PROMPTS))]
            try:
                with torch.inference_mode():
                    return self.pipeline(prompt=list(PROMPTS), generator=generators, **self.arguments).images
            except _Stop:
                pass

    def _forward(self, *args, timestep=None, **kwargs):
        if timestep is None:
            args, timestep = args[:1], args[1]
        self.clock.set_slot(self.call)
        if self.call < len(self.timesteps):
            self.call += 1
            return (self._sliced(args, timestep, kwargs),)
        self._observe(args, timestep, kwargs)
        raise _Stop

    def _sliced(self, args, timestep, kwargs):
        names = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor)]
        total = len(args[0]) if args else len(kwargs["hidden_states"])
        parts = []
        for start in range(0, total, self.rows):
            rows = slice(start, start + self.rows)
            some = {**kwargs, **{name: kwargs[name][rows] for name in names}, "timestep": timestep}
            if timestep.ndim:
                some["timestep"] = timestep[rows]
            if kwargs.get("added_cond_kwargs"):
                some["added_cond_kwargs"] = {key: value[rows] for key, value in kwargs["added_cond_kwargs"].items()}
            parts.append(self.float_forward(*(value[rows] for value in args), **some)[0])
        return torch.cat(parts)

    def _observe(self, args, timestep, kwargs):
        handles = [layer.register_forward_pre_hook(self._note(name)) for name, layer in self.layers.items()]
        for layer in self.layers.values():
            layer.mode = ExecutionMode.WEIGHT_ONLY
        self.timesteps.append(float(timestep.flatten()[0]))
        self._sliced(args, timestep, kwargs)
        for handle in handles:
            handle.remove()
        for name, layer in self.layers.items():
            layer.mode = ExecutionMode.INTEGER
            scale, zero_point = self.parameters(name, len(self.timesteps) - 1, 8)
            layer.input_scale[self.call], layer.input_zero_point[self.call] = float(scale), zero_point
            layer.input_num_bits[self.call] = 8
            layer._rows.clear()

    def _note(self, name):
        def hook(_, args):
            key = name, len(self.timesteps) - 1
            lo, hi = self.seen.get(key, (math.inf, -math.inf))
            self.seen[key] = min(lo, float(args[0].min())), max(hi, float(args[0].max()))

        return hook

    def extremes(self, name, call):
        """Over this call and all earlier ones at the same timestep."""
        same = [c for c in range(call + 1) if self.timesteps[c] == self.timesteps[call]]
        return min(self.seen[name, c][0] for c in same), max(self.seen[name, c][1] for c in same)

    def parameters(self, name, call, bits):
        lo, hi = self.extremes(name, call)
        lo, hi = min(lo, 0.0), max(hi, 0.0)
        scale = np.float32((hi - lo) / (2**bits - 1)) if hi > lo else np.float32(1.0)
        return scale, int(np.round(-lo / np.float64(scale)))


def _quantize(build, call_kwargs, batch_size):
    pipeline = build()
    rows = _count_rows(denoiser_of(pipeline))
    result = halftone.quantize(
        pipeline,
        "pcr-no-relax-w8a8",
        PROMPTS,
        num_inference_steps=STEPS,
        seed=5,
        batch_size=batch_size,
        **call_kwargs,
    )
    return result, sum(rows)


def _count_rows(module):
    """Notes the rows that go through the denoiser's first layer, which is never replaced."""
    rows = []
    first = module.conv_in if hasattr(module, "conv_in") else module.pos_embed
    first.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


@pytest.mark.parametrize("case", CASES)
def test_lockstep_is_restart_from_noise_bit_for_bit(case, monkeypatch):
    # Text encoders round differently at another batch size; here only the denoiser walks micro-batches.
    monkeypatch.setattr(pipeline_call, "_text_encoders_in_micro_batches", lambda *_: nullcontext())
    build, call_kwargs, batch_size = CASES[case]
    halves = 1 if call_kwargs["guidance_scale"] == 1.0 else 2
    result, rows = _quantize(build, call_kwargs, batch_size)
    restart = _Restart(build(), call_kwargs, rows=batch_size * halves)
    latents = restart.run()

    calls = STEPS + 1 if case == "sd pndm" else STEPS
    assert result.calibration.timesteps == tuple(restart.timesteps) and len(restart.timesteps) == calls
    assert restart.starts == calls + 1
    assert result.calibration.denoiser_passes_per_prompt == 2 * calls
    assert rows == 2 * calls * halves * len(PROMPTS)

    distinct = list(dict.fromkeys(restart.timesteps))
    last_visit = [max(c for c in range(calls) if restart.timesteps[c] == timestep) for timestep in distinct]
    layers = dict(quantized_layers(denoiser_of(result.pipeline)))
    assert list(layers) == list(restart.layers)
    for name, layer in layers.items():
        expected = [restart.parameters(name, call, 8) for call in last_visit]
        assert layer.input_scale.tolist() == [float(scale) for scale, _ in expected], name
        assert layer.input_zero_point.tolist() == [zero_point for _, zero_point in expected], name
        assert layer.input_num_bits.tolist() == [8] * len(distinct)
        assert result.calibration.ranges[name] == tuple(restart.extremes(name, call) for call in last_visit), name

    if case in ("sd", "sdxl", "sd3", "sd without guidance"):  # one micro-batch, no repeated timestep
        generators = [torch.Generator().manual_seed(5 + index) for index in range(len(PROMPTS))]
        assert torch.equal(result.pipeline(list(PROMPTS), generator=generators, **restart.arguments).images, latents)


def test_repeated_timestep_shares_a_slot_that_covers_both_visits():
    build, call_kwargs, batch_size = CASES["sd pndm"]
    result, _ = _quantize(build, call_kwargs, batch_size)
    restart = _Restart(build(), call_kwargs, rows=batch_size * 2)
    restart.run()
    assert result.config.slots.timesteps == (751.0, 501.0, 251.0, 1.0)
    assert restart.timesteps == [751.0, 501.0, 501.0, 251.0, 1.0]
    shared = [result.calibration.ranges[name][1] for name in restart.layers]
    first = [restart.seen[name, 1] for name in restart.layers]
    second = [restart.seen[name, 2] for name in restart.layers]
    assert shared == [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(first, second, strict=True)]
    assert first != second and shared not in (first, second)


def test_batch_size_changes_the_first_step_in_the_last_bits_only():
    one, _ = _quantize(*CASES["sd one prompt at a time"])
    all_, _ = _quantize(*CASES["sd"])
    for name, ranges in all_.calibration.ranges.items():
        assert one.calibration.ranges[name][0] == pytest.approx(ranges[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("recipe, slots", [("per-step-w8a8", STEPS), ("minmax-w8a8", 1)])
def test_full_precision_calibration_observes_the_float_trajectory_once(recipe, slots):
    pipeline, seen = tiny_sd(), {}
    unet = pipeline.unet
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"

    def note(_, args):
        seen.setdefault(len(calls) - 1, []).append(args[0].clone())

    calls = []
    handles = [
        unet.register_forward_pre_hook(lambda *_: calls.append(1)),
        unet.get_submodule(name).register_forward_pre_hook(note),
    ]
    generators = [torch.Generator().manual_seed(index) for index in range(len(PROMPTS))]
    pipeline(list(PROMPTS), num_inference_steps=STEPS, generator=generators, output_type="latent")
    for handle in handles:
        handle.remove()
    rows = _count_rows(unet)
    result = halftone.quantize(pipeline, recipe, PROMPTS, num_inference_steps=STEPS)
    expected = [(min(x.min().item() for x in s), max(x.max().item() for x in s)) for s in seen.values()]
    if slots == 1:
        expected = [(min(lo for lo, _ in expected), max(hi for _, hi in expected))]
    assert result.calibration.ranges[name] == tuple(expected)
    assert unet.get_submodule(name).num_slots == slots
    assert result.calibration.denoiser_passes_per_prompt == STEPS and sum(rows) == STEPS * 2 * len(PROMPTS)


def test_relaxed_slots_use_their_own_bits():
    pipeline = tiny_sd()
    recipe = {"relax": {"fraction": 0.5, "side": "end", "bits": 10}}
    result = halftone.quantize(pipeline, halftone.Recipe.from_dict(recipe), PROMPTS, num_inference_steps=STEPS)
    assert result.config.slots.num_bits == (8, 8, 10, 10) and result.average_activation_bits == 9.0
    for name, layer in quantized_layers(pipeline.unet):
        assert layer.input_num_bits.tolist() == [8, 8, 10, 10]
        lo, hi = result.calibration.ranges[name][3]
        span = max(hi, 0.0) - min(lo, 0.0)
        assert layer.input_scale[3].item() == np.float32(span / 1023)


def test_observers_are_dropped_when_their_slot_is_done(monkeypatch):
    from halftone.calibration.lockstep import ProgressiveLockstep

    held = []
    leave = ProgressiveLockstep._leave

    def note(self, row):
        leave(self, row)
        held.append(len(self.observers))

    monkeypatch.setattr(ProgressiveLockstep, "_leave", note)
    halftone.quantize(tiny_sd(scheduler="pndm"), "pcr-w8a8", PROMPTS[:1], num_inference_steps=STEPS)
    assert held == [0, 1, 0, 0, 0]


def test_normal_draw_leans_towards_the_image():
    """Quantiles of N(0.4, 0.5) at 1/8, 3/8, 5/8 and 7/8: -0.175, 0.241, 0.559, 0.975 of the way from the image."""
    assert normal_draw(4, 10) == ((3,), (), (), (), (2,), (), (), (1,), (), (0,))
    counts = [len(prompts) for prompts in normal_draw(1000, 10)]
    assert sum(counts) == 1000 and sum(counts[5:]) == pytest.approx(579, abs=2)  # Phi(0.2) = 0.579
    assert normal_draw(1, 3) == ((), (0,), ())


@pytest.mark.parametrize("build", [tiny_sd, tiny_sd3])
def test_ptq4dm_observes_each_prompt_at_one_step(build):
    """Against hooks of our own, which watch whole calls of the pipeline and take the rows of the prompts drawn."""
    layer = "mid_block.resnets.0.conv1" if build is tiny_sd else "transformer_blocks.0.attn.to_q"
    pipeline, inputs = build(), []
    module = denoiser_of(pipeline)
    handle = module.get_submodule(layer).register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    generators = [torch.Generator().manual_seed(index) for index in range(3)]
    pipeline(list(PROMPTS), num_inference_steps=STEPS, generator=generators, guidance_scale=4.0, output_type="latent")
    handle.remove()
    seen = [inputs[call][[prompt, 3 + prompt]] for call, drawn in enumerate(normal_draw(3, STEPS)) for prompt in drawn]
    recipe = halftone.Recipe.from_dict(
        {"activations": {"granularity": "tensor"}, "calibration": "full_precision", "observed_steps": "normal"}
    )
    result = halftone.quantize(build(), recipe, PROMPTS, num_inference_steps=STEPS, guidance_scale=4.0)
    (found,) = result.calibration.ranges[layer]
    expected = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert result.calibration.denoiser_passes_per_prompt == pytest.approx(STEPS + 1)
