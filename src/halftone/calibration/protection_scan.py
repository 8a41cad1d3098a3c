"""Measures, on a few prompts and the full-precision model, what `protection` chooses the protected layers from.

Layers are rounded by computing with other weights and inputs in their place, so that nothing in the model changes, and
what one layer needs for that is all that is held beside it:

1. one full-precision trajectory; a few of its calls, at even distances, are kept, with the ranges of their inputs;
2. for each layer these calls once more, its weights (to nearest, on the recipe's grid) and its input rounded and
   everything else in floating point: the error of the prediction that this layer makes alone;
3. the same calls with all layers rounded, and with all but the chosen ones: if that is not nearer to full precision,
   nothing is protected.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.lockstep import check_finite, explaining_refusal, input_key, prediction_of
from halftone.calibration.observation import observing
from halftone.calibration.pieces import Pieces
from halftone.calibration.protection import LayerErrors, LayerShares, most_harmful, settled
from halftone.calibration.relaxation import probed_calls
from halftone.calibration.rounded_layers import Table, find_measured, find_ranges, rounded_forward, table_of
from halftone.calibration.run import check_weights, evaluating, grid_of, run_pipeline
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.stages import PROTECTING, Stages
from halftone.calibration.trace import Trace
from halftone.denoiser import Denoiser, as_output
from halftone.microbatch import batch_size, in_micro_batches, pick_arguments, replaced_forward
from halftone.numerics import QParams
from halftone.quantities import time_text
from halftone.recipe import Recipe
from halftone.weight_grid import WeightGrid

__all__ = ["ProtectedLayers", "ProtectionPlan", "find_protected_layers", "protection_sentence"]

PROMPTS = 2  # of the calibration's; a prediction has thousands of elements to average over
CALLS = 4  # of the trajectory, on which layers are rounded
TOGETHER = 2  # with all layers rounded, and with all but the chosen ones


@dataclass(frozen=True)
class ProtectedLayers:
    """What a scan chose, and from what.

    Attributes:
        layers: that stay in floating point, with their shares of the squared errors and of the multiplications.
        tried: the layers chosen by those shares; not protected if that did not lower the error of the prediction.
        all_quantized: ‖error‖ / ‖prediction‖ over the scan's calls with all layers rounded.
        protected: the same with all but ``tried``.
        calls: numbers of the scan's calls.
        passes: of the scan's prompts through the denoiser.
        prompts: of the scan.
        resumed_pieces: of the scan, found on disk.
        seconds: wall time of this process.
    """

    layers: Mapping[str, LayerShares]
    tried: tuple[str, ...]
    all_quantized: float
    protected: float
    calls: tuple[int, ...]
    passes: int
    prompts: int
    resumed_pieces: int
    seconds: float

    def reasons(self) -> dict[str, str]:
        """Why each protected layer is left in floating point, in words."""
        return {
            name: f"protected: alone it makes {_percent(shares.error)} of the layers' squared error with"
            f" {_percent(shares.operations)} of their multiplications"
            for name, shares in self.layers.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """For the record; JSON-ready."""
        return {
            "layers": {name: shares._asdict() for name, shares in self.layers.items()},
            **({} if self.layers or not self.tried else {"tried": list(self.tried)}),
            "prediction_error": {"all_quantized": self.all_quantized, "protected": self.protected},
            "prompts": self.prompts,
            "calls": list(self.calls),
        }


def _percent(share: float) -> str:
    """``12 %``, ``0.43 %``."""
    return f"{100 * share:.0f} %" if share > 0.0995 else f"{100 * share:.2g} %"


@dataclass(frozen=True)
class ProtectionPlan:
    """How much a scan does.

    Attributes:
        calls: of the denoiser for an image.
        prompts: that go through it.
        looked: calls on which layers are rounded.
        layers: how many.
    """

    calls: int
    prompts: int
    looked: tuple[int, ...]
    layers: int

    @classmethod
    def of(cls, trace: Trace, settings: CalibrationSettings, layers: int) -> ProtectionPlan:
        calls = len(trace.timesteps)
        return cls(calls, min(PROMPTS, len(settings.prompts)), probed_calls(calls, CALLS), layers)

    @property
    def works(self) -> tuple[int, ...]:
        """Passes through the denoiser of each piece, in order: the trajectory's calls, layers, layers together."""
        return (*[1] * self.calls, *[len(self.looked)] * (self.layers + TOGETHER))


def protection_sentence(
    settings: CalibrationSettings, trace: Trace, layers: int, done: int, pass_seconds: float | None
) -> str:
    """One line for the person who waits, to follow that of the calibration.

    Args:
        layers: to choose from.
        done: pieces that an interrupted run has left on disk; the time is that of the others.
        pass_seconds: of one pass of all prompts in floating point, over all calls; None if not known.
    """
    plan = ProtectionPlan.of(trace, settings, layers)
    text = f"First, the protected layers are chosen with {sum(plan.works)} passes of {plan.prompts} prompts"
    if done:
        text += f", {sum(plan.works[:done])} of them done,"
    if pass_seconds is None:
        return f"{text.rstrip(',')}."
    seconds = pass_seconds * sum(plan.works[done:]) * plan.prompts / (len(settings.prompts) * plan.calls)
    return f"{text} in about {time_text(seconds)}."


def find_protected_layers(
    pipeline: Any,
    denoiser: Denoiser,
    names: Sequence[str],
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    checkpoint: Checkpoint,
    stages: Stages | None = None,
) -> ProtectedLayers:
    """Chooses the layers that a recipe with ``protect`` leaves in floating point; changes nothing in the pipeline.

    Any layers of a denoiser in floating point may be asked about, halves of a split convolution too. What is compared
    are norms over all rows of a call, both halves of guidance, and over the scan's calls.

    Args:
        names: of the layers to choose from, those that would be quantized; at least one of them is not chosen.
        recipe: its ``protect.operations`` is the budget, its weights and activations say how layers are rounded.
        trace: the calls that the pipeline will make, from `trace_calls`.
        checkpoint: finished pieces of an interrupted run.
        stages: is told of every piece.

    Raises:
        NonFiniteError: a weight, an activation or a prediction is NaN or infinite; says where.

    Example:
        >>> recipe = Recipe.load({"protect": {"layers": "auto", "operations": 0.02}})  # doctest: +SKIP
        >>> trace = trace_calls(pipeline, denoiser, settings)  # doctest: +SKIP
        >>> names = list(choose_layers(denoiser.module, recipe.exclude).chosen)  # doctest: +SKIP
        >>> kept = Checkpoint(None, {})  # doctest: +SKIP
        >>> found = find_protected_layers(pipeline, denoiser, names, recipe, settings, trace, kept)  # doctest: +SKIP
        >>> found.reasons()  # doctest: +SKIP
    """
    layers = {name: denoiser.module.get_submodule(name) for name in names}
    finished = checkpoint.part("protecting")
    return _Scan(pipeline, denoiser, layers, recipe, settings, trace, finished, stages or Stages()).run()


class _Scan:
    """The three parts of a scan; each finished piece is kept in the checkpoint."""

    def __init__(
        self,
        pipeline: Any,
        denoiser: Denoiser,
        layers: Mapping[str, Any],
        recipe: Recipe,
        settings: CalibrationSettings,
        trace: Trace,
        finished: Checkpoint,
        stages: Stages,
    ):
        self.pipeline, self.denoiser, self.layers, self.recipe = pipeline, denoiser, layers, recipe
        self.settings, self.trace = settings, trace
        assert recipe.protect is not None
        self.budget = recipe.protect.operations
        self.plan = ProtectionPlan.of(trace, settings, len(layers))
        self.walk = in_micro_batches(denoiser.module.forward, settings.batch_size * max(1, trace.rows))
        self.calls: list[_Call] = []
        self.grids: dict[str, WeightGrid] = {}
        self.multiplications = [0] * len(layers)
        self.pieces = Pieces(PROTECTING, self.plan.works, finished, stages)
        self._inputs: list[str] = []

    def run(self) -> ProtectedLayers:
        started = time.perf_counter()
        module, prompts = self.denoiser.module, self.settings.prompts[: self.plan.prompts]
        check_weights(module)
        run_pipeline(self.pipeline, self.denoiser, self.settings, self._follow, prompts)
        with evaluating(module), torch.inference_mode():
            squared = tuple(self._alone(name) for name in self.layers)
            errors = LayerErrors(tuple(self.layers), squared, tuple(self.multiplications))
            tried = most_harmful(errors, self.budget)
            everything = self._together(())
            others = self._together(tried, everything)
            size = math.fsum(float(call.prediction.double().square().sum()) for call in self.calls) or 1.0
        works = self.plan.works
        return ProtectedLayers(
            layers={name: errors.shares(name) for name in tried} if others < everything else {},
            tried=tried,
            all_quantized=settled(math.sqrt(everything / size)),
            protected=settled(math.sqrt(others / size)),
            calls=self.plan.looked,
            passes=sum(works) if tried else sum(works[:-1]),
            prompts=self.plan.prompts,
            resumed_pieces=self.pieces.resumed,
            seconds=time.perf_counter() - started,
        )

    def _follow(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of the denoiser's forward: its prediction, and keeps the calls on which layers are rounded."""
        number, key = len(self._inputs), input_key(args, kwargs)
        label = f"step {number + 1} of {self.plan.calls} (timestep {self.trace.timesteps[number]:g})"
        tensors = self.pieces.next(key, lambda: self._look(number, label, args, kwargs))
        self._inputs.append(key)
        prediction = self._placed(tensors["prediction"])
        if number in self.plan.looked:
            total = batch_size(args, kwargs)
            kept, named = pick_arguments(args, kwargs, range(total), total)
            self.calls.append(_Call(kept, named, prediction.clone(), self._table(tensors), label))
            counted = tensors["multiplications"].tolist()
            self.multiplications = [before + more for before, more in zip(self.multiplications, counted, strict=True)]
        return as_output(prediction, kwargs)

    def _look(self, number: int, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        if number not in self.plan.looked:
            prediction = prediction_of(self.walk(*args, **kwargs))
            check_finite(prediction, label)
            return {"prediction": prediction}
        scheme, counts = self.recipe.activations, dict.fromkeys(self.layers, 0)
        observers = {name: scheme.observer.build() for name in self.layers}
        first = nullcontext() if number else explaining_refusal(self.denoiser.module)
        with first, observing(self.layers, observers, label), counting(self.layers, counts):
            prediction = prediction_of(self.walk(*args, **kwargs))
        check_finite(prediction, label)
        tensors = {"prediction": prediction, "multiplications": torch.tensor(list(counts.values()))}
        if scheme.granularity == "token":
            return tensors
        scales, zeros = find_ranges(observers, scheme, scheme.num_bits)
        return {**tensors, "scale": scales, "zero point": zeros}

    def _alone(self, name: str) -> float:
        """Square of the error of the prediction with one layer rounded."""
        weight, scheme = self.layers[name].weight, self.recipe.weights

        def measure() -> dict[str, Tensor]:
            grid = self.grids[name] = grid_of(weight, scheme)
            parts = dict(zip(("scale", "zero point"), grid.tensors, strict=False))
            return {**parts, "squared": self._squared_error([name], f"with layer {name} rounded")}

        tensors = self.pieces.next(f"{self._digest()}:{name}", measure)
        parts = [self._placed(tensors[part]) for part in ("scale", "zero point") if part in tensors]
        self.grids[name] = WeightGrid(scheme.num_bits, parts[0], parts[1] if parts[1:] else None, scheme.group_size)
        return float(tensors["squared"])

    def _together(self, spared: Collection[str], known: float | None = None) -> float:
        """The same with all layers rounded but some.

        Args:
            known: what it is if none are spared; measured if None.
        """
        rounded = [name for name in self.layers if name not in spared]

        def measure() -> dict[str, Tensor]:
            if known is not None and not spared:
                return {"squared": torch.tensor(known, dtype=torch.float64)}
            return {"squared": self._squared_error(rounded, f"with {len(rounded)} layers rounded")}

        named = "\n".join([self._digest(), *rounded])
        return float(self.pieces.next(hashlib.sha256(named.encode()).hexdigest(), measure)["squared"])

    def _squared_error(self, names: Sequence[str], words: str) -> Tensor:
        """Over the scan's calls, of the prediction with these layers rounded; float64."""
        squares = []
        for call in self.calls:
            with self._rounding(names, call):
                error = prediction_of(self.walk(*call.args, **call.kwargs)) - call.prediction
            check_finite(error, f"{call.label}, {words}")
            squares.append(float(error.double().square().sum()))
        return torch.tensor(settled(math.fsum(squares)), dtype=torch.float64)

    @contextmanager
    def _rounding(self, names: Sequence[str], call: _Call) -> Iterator[None]:
        """Within the context these layers compute with rounded weights and inputs."""
        with ExitStack() as stack:
            for name in names:
                layer = self.layers[name]
                measured = find_measured(layer, self.recipe.activations)
                found = measured if call.table is None else partial(_always, call.table[name])
                forward = rounded_forward(layer, self.grids[name], found)
                stack.enter_context(replaced_forward(layer, forward))
            yield

    def _table(self, tensors: Mapping[str, Tensor]) -> Table | None:
        """How the inputs of the layers are rounded at a call; None if each is measured."""
        if "scale" not in tensors:
            return None
        scales, zeros = self._placed(tensors["scale"]), self._placed(tensors["zero point"])
        return table_of(self.layers, scales, zeros, self.recipe.activations.num_bits)

    def _digest(self) -> str:
        """Of all that went into the denoiser."""
        return hashlib.sha256("".join(self._inputs).encode()).hexdigest()

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.denoiser.module.parameters()).device)


@dataclass(frozen=True)
class _Call:
    """A call of the trajectory: its arguments and prediction, how the layers' inputs are rounded there (None if each is
    measured), and what it is called."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    prediction: Tensor
    table: Table | None
    label: str


def _always(qparams: QParams, _: Tensor) -> QParams:
    return qparams


@contextmanager
def counting(layers: Mapping[str, Any], counts: dict[str, int]) -> Iterator[None]:
    """Within the context the multiplications of every call of a layer are added to ``counts``, by its shapes: each
    number of the output takes as many as an output channel has weights."""

    def hook(name: str) -> Callable[..., None]:
        def add(layer: Any, _: tuple[Any, ...], output: Tensor) -> None:
            counts[name] += output.numel() * (layer.weight.numel() // len(layer.weight))

        return add

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook(name)).remove)
        yield
