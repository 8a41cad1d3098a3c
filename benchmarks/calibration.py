"""Lockstep against restart-per-step: what progressive calibration costs, in denoiser passes and wall time.

    python -m benchmarks.calibration --steps 50 --num-prompts 4

Restart-per-step is how the method's authors ran it: for each step, all prompts start again from noise, run the already
quantized steps, and the step in question is observed. Both give the same parameters, which is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from halftone.calibration.observation import Observers, observing
from halftone.calibration.pipeline_call import call_pipeline
from halftone.calibration.run import make_slots, quantize_layers
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.trace import trace_calls
from halftone.denoiser import choose_layers, find_denoiser, timestep_of
from halftone.layers import ExecutionMode, QuantizedLayer, set_mode
from halftone.microbatch import in_micro_batches, replaced_forward
from halftone.numerics import range_to_qparams
from halftone.prompts import read_prompts
from halftone.quantization import quantize
from halftone.recipe import Recipe
from halftone.sources import open_pipeline
from halftone.timesteps import SlotClock


class StepReached(Exception):
    """Ends a pipeline's call at the step that was to be observed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="bundled:mini-sd")
    parser.add_argument("--recipe", default="pcr-w8a8")
    parser.add_argument("--prompts", default="bundled:calibration")
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="write the result there as JSON, too")
    args = parser.parse_args()
    settings = CalibrationSettings(
        read_prompts(args.prompts, args.num_prompts), args.steps, args.guidance, batch_size=args.num_prompts
    )
    recipe = Recipe.load(args.recipe)
    restart = restart_per_step(open_pipeline(args.source), recipe, settings)
    lockstep = in_lockstep(open_pipeline(args.source), recipe, settings)
    result = report(args, restart, lockstep)
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def report(args: argparse.Namespace, restart: dict[str, Any], lockstep: dict[str, Any]) -> dict[str, Any]:
    """Both measurements and their ratios."""
    return {
        "source": args.source,
        "recipe": args.recipe,
        "prompts": args.num_prompts,
        "steps": args.steps,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "restart_per_step": {key: restart[key] for key in ("passes_per_prompt", "seconds")},
        "lockstep": {key: lockstep[key] for key in ("passes_per_prompt", "seconds")},
        "passes_ratio": restart["passes_per_prompt"] / lockstep["passes_per_prompt"],
        "seconds_ratio": restart["seconds"] / lockstep["seconds"],
        "same_parameters": all(
            torch.equal(ours, theirs)
            for name, tables in lockstep["tables"].items()
            for ours, theirs in zip(tables, restart["tables"][name], strict=True)
        ),
    }


def in_lockstep(pipeline: Any, recipe: Recipe, settings: CalibrationSettings) -> dict[str, Any]:
    """Halftone's own calibration."""
    started = time.perf_counter()
    result = quantize(
        pipeline,
        recipe,
        settings.prompts,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        batch_size=settings.batch_size,
    )
    return {
        "seconds": time.perf_counter() - started,
        "passes_per_prompt": result.calibration.denoiser_passes_per_prompt,
        "tables": _tables(pipeline, result.config.layers),
    }


def restart_per_step(pipeline: Any, recipe: Recipe, settings: CalibrationSettings) -> dict[str, Any]:
    """The same, every step from noise."""
    started = time.perf_counter()
    denoiser = find_denoiser(pipeline)
    layers = choose_layers(denoiser.module, recipe.exclude).chosen
    trace = trace_calls(pipeline, denoiser, settings)
    clock = SlotClock(make_slots(recipe, trace))
    quantized = quantize_layers(denoiser.module, layers, recipe, clock)
    passes, seen = 0.0, dict[int, Observers]()
    for step in range(len(trace.timesteps)):
        runner = _UpToStep(denoiser.module, quantized, recipe, clock, step, settings.batch_size * trace.rows, seen)
        with replaced_forward(denoiser.module, runner), contextlib.suppress(StepReached):
            call_pipeline(pipeline, settings, settings.prompts)
        passes += runner.passes
    return {
        "seconds": time.perf_counter() - started,
        "passes_per_prompt": passes,
        "tables": _tables(pipeline, tuple(quantized)),
    }


class _UpToStep:
    """The denoiser's forward: quantized before the step, observed at it, and then no further."""

    def __init__(
        self,
        module: torch.nn.Module,
        layers: Mapping[str, QuantizedLayer],
        recipe: Recipe,
        clock: SlotClock,
        step: int,
        rows: int,
        seen: dict[int, Observers],
    ):
        self.module, self.forward, self.layers = module, module.forward, layers
        self.recipe, self.clock, self.step, self.rows = recipe, clock, step, rows
        self.call = 0
        self.passes = 0.0
        self.seen = seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        slot = self.clock.set_timestep(timestep_of(self.module, args, kwargs))
        run = in_micro_batches(self.forward, self.rows)
        self.passes += 1
        self.call += 1
        if self.call <= self.step:
            return run(*args, **kwargs)
        build = self.recipe.activations.observer.build
        # a timestep that is visited twice, as by PNDM, shares one slot
        observers = self.seen.setdefault(slot, {name: build() for name in self.layers})
        set_mode(self.module, ExecutionMode.WEIGHT_ONLY)
        with observing(self.layers, observers, f"step {self.step}"):
            run(*args, **kwargs)
        set_mode(self.module, ExecutionMode.INTEGER)
        bits, symmetric = self.clock.slots.num_bits[slot], self.recipe.activations.symmetric
        for name, observer in observers.items():
            lo, hi = observer.range(bits, symmetric)
            self.layers[name].set_row(slot, range_to_qparams(lo, hi, bits, symmetric))
        raise StepReached


def _tables(pipeline: Any, names: tuple[str, ...]) -> dict[str, list[torch.Tensor]]:
    """Scales, zero points and bits of each layer's slots."""
    module, columns = find_denoiser(pipeline).module, ("input_scale", "input_zero_point", "input_num_bits")
    return {name: [module.get_submodule(name).get_buffer(column).clone() for column in columns] for name in names}


if __name__ == "__main__":
    main()
