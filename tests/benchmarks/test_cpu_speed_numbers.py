"""The arithmetic of the speed benchmark: groups, ratios, shares, load, what is left to do. No process is started."""

import pytest
import torch
from torch import nn

from benchmarks.cpu_speed import operators
from benchmarks.cpu_speed.grouping import plan_groups
from benchmarks.cpu_speed.inputs import inputs_of
from benchmarks.cpu_speed.models import MODELS, unet_config
from benchmarks.cpu_speed.operators import Event, group_of, shares
from benchmarks.cpu_speed.peers.registry import peers_of, stages_of
from benchmarks.cpu_speed.processes import ChildFailed
from benchmarks.cpu_speed.progress import Progress
from benchmarks.cpu_speed.ratios import ratio, timing, values_of
from benchmarks.cpu_speed.reasons import reason_of, without_paths
from benchmarks.cpu_speed.result import Measured, ceilings_of, contestants_result
from benchmarks.cpu_speed.rounds import Contestant, conditions, key_of, load_between, run_rounds
from benchmarks.cpu_speed.stages import in_order
from benchmarks.cpu_speed.unets import call_unet, operations_of


def test_groups_hold_what_fits_and_all_hold_the_common_ones():
    memory = {"a": 5.0, "common": 2.0, "b": 4.0, "c": 3.0, "d": 9.0, "ceilings": 1.0}
    groups, refused = plan_groups(memory, ("common", "ceilings"), 11.0)
    assert groups == [["common", "ceilings", "a", "c"], ["common", "ceilings", "b"]]
    assert list(refused) == ["d"] and "9.0 GiB" in refused["d"]
    assert plan_groups(memory, ("common", "ceilings"), 100.0)[0] == [["common", "ceilings", "a", "b", "c", "d"]]
    assert plan_groups({"common": 2.0}, ("common", "ceilings"), 3.0) == ([["common"]], {})


def test_common_peers_that_do_not_fit_leave_nothing():
    groups, refused = plan_groups({"common": 2.0, "a": 1.0}, ("common",), 1.5)
    assert groups == [] and set(refused) == {"common", "a"}


def test_ratios_are_taken_round_by_round():
    # the machine becomes ten times slower, for everyone
    group = [{"a": 2.0, "b": 1.0}, {"a": 20.0, "b": 10.0}, {"a": 200.0, "b": 100.0}]
    found = ratio([group], "a", "b", "c")
    assert found == {"median": 2.0, "lower_quartile": 2.0, "upper_quartile": 2.0}
    assert timing(values_of([group], "a"))["median_s"] == pytest.approx(20.0)


def test_peers_of_different_groups_are_compared_by_way_of_the_common_one():
    groups = [[{"a": 6.0, "c": 2.0}, {"a": 3.0, "c": 1.0}], [{"b": 1.0, "c": 4.0}, {"b": 2.0, "c": 8.0}]]
    assert ratio(groups, "a", "b", "c") == {
        "median": pytest.approx(12.0),
        "lower_quartile": pytest.approx(12.0),
        "upper_quartile": pytest.approx(12.0),
        "via": "c",
    }
    assert "via" not in ratio(groups, "a", "c", "c")
    assert ratio(groups, "a", "nobody", "c") is None


def test_a_round_in_which_one_is_missing_does_not_count_for_its_ratio():
    group = [{"a": 2.0, "b": 1.0}, {"b": 1.0}, {"a": 4.0, "b": 1.0}]
    assert ratio([group], "a", "b", "c")["median"] == pytest.approx(3.0)
    assert timing([0.5])["median_s"] == timing([0.5])["upper_quartile_s"] == 0.5


def measured(name, variant="", error=0.01, operations=0):
    facts = {"error": error, "first_s": 9.0, "operations": operations}
    ready = {"start_s": 5.0, "loaded_gib": 1.0, "peak_gib": 2.0}
    return Measured(peers_of(MODELS["sd15"])[name], variant, facts, ready, peak_gib=3.0)


def test_results_by_hand():
    known = {
        "torch-fp32": measured("torch-fp32"),
        "halftone-bf16": measured("halftone-bf16"),
        "halftone-bf16: relaxed": measured("halftone-bf16", "relaxed", error=float("nan")),
        "ceilings: float32": measured("ceilings", "float32", operations=10**11),
        "ceilings: int8": measured("ceilings", "int8", operations=10**11),
        "ceilings: int8 by torch._int_mm": measured("ceilings", "int8 by torch._int_mm", operations=2 * 10**11),
    }
    times = dict(zip(known, (8.0, 1.0, 2.0, 1.0, 0.5, 0.8), strict=True))
    groups = [[times, times]]
    ceilings = ceilings_of(known, groups)
    assert ceilings == {"float32": pytest.approx(100.0), "int8": pytest.approx(250.0)}
    found = contestants_result(known, groups, 10**11, ceilings)
    assert set(found) == {"torch-fp32", "halftone-bf16", "halftone-bf16: relaxed"}
    main, base = found["halftone-bf16"], found["torch-fp32"]
    assert main["speedup_over_fp32"]["median"] == base["halftone_is_faster"]["median"] == 8.0
    assert main["share_of_int8_ceiling"] == main["share_of_own_ceiling"] == pytest.approx(0.4)
    assert base["share_of_own_ceiling"] == pytest.approx(0.125)
    assert main["peak_gib"] == 3.0 and main["agrees"] and main["rounds_s"] == [[1.0, 1.0]]
    relaxed = found["halftone-bf16: relaxed"]
    assert not relaxed["agrees"] and relaxed["start_s"] is None
    assert relaxed["words"] == "Halftone w8a8 in bfloat16, relaxed"


def test_load_by_hand():
    before = {"wall": 0.0, "active": 0.0, "waiting": 0.0, "stolen": 0.0, "busy": 0.0}
    after = {"wall": 10.0, "active": 9.0, "waiting": 0.5, "stolen": 1.0, "busy": 11.5}
    load = load_between(before, after, processors=2)
    assert (load.waiting, load.others, load.stolen) == pytest.approx((0.025, 0.1, 0.05))
    assert conditions([load])["others"] == {"median_percent": 10.0, "worst_percent": 10.0}
    assert conditions([]) == {}


class FakeChild:
    """Answers at once; fails from its n-th turn on."""

    def __init__(self, fails_at=None):
        self.turns, self.fails_at = [], fails_at

    def ask(self, request):
        self.turns.append(request["turn"])
        if self.fails_at is not None and len(self.turns) >= self.fails_at:
            raise ChildFailed("it was killed")
        return {"seconds": 2.0, "peak_gib": len(self.turns)}

    def cpu_seconds(self):
        return 0.0


def test_rounds_go_on_without_who_fails(monkeypatch):
    monkeypatch.setattr("benchmarks.cpu_speed.rounds._PAUSE", 0.0)
    good, bad = FakeChild(), FakeChild(fails_at=2)
    contestants = [Contestant(key_of("good", v), good, v) for v in ("", "other")] + [Contestant("bad", bad, "")]
    failed, turns, rounds = {}, [], []
    times, loads = run_rounds(contestants, 3, lambda: turns.append(1), rounds.append, failed)
    assert [set(taken) for taken in times] == [{"good", "good: other", "bad"}, *[{"good", "good: other"}] * 2]
    assert failed == {"bad": "it was killed"} and rounds == [1, 2, 3]
    assert len(loads) == 7 and len(turns) == 8
    assert sorted(good.turns) == [*[""] * 3, *["other"] * 3] and contestants[0].peak_gib >= 5


def test_remaining_time_by_hand():
    progress = Progress({"stage": 2, "turn": 10})
    progress.finish("stage", 60.0)
    assert progress.remaining() == "at least 60 s left"
    progress.finish("turn", 20.0)
    assert progress.remaining() == "about 4 min left"
    progress.plan("turn", -8)
    assert progress.remaining() == "about 80 s left"


def test_reasons_are_one_sentence_without_folders():
    error = RuntimeError("cannot open '/somewhere/on/this/machine/model.xml'\nand more")
    assert reason_of(error) == "RuntimeError: cannot open 'model.xml'"
    assert reason_of(MemoryError()) == "MemoryError"
    assert without_paths("1/2 of https://example.org/a/b and w/o") == "1/2 of https://example.org/a/b and w/o"


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("onednn::qlinear_pointwise", "linear"),
        ("onednn::qconv_pointwise", "convolution"),
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("halftone_attention", "attention"),
        ("halftone_quantize_rows", "quantization"),
        ("aten::native_group_norm", "norms"),
        ("aten::addmm", "linear"),
        ("aten::add_", "elementwise"),
        ("aten::copy_", "copies"),
        ("aten::cat", "copies"),
        ("aten::bmm", "attention"),
        ("aten::view", "other"),
    ],
)
def test_groups_of_operators(operator, group):
    assert group_of(operator) == group


def test_shares_add_up_and_tell_what_no_operator_has():
    found = shares([Event("aten::addmm", 2.0, 1), Event("aten::mm", 1.0, 3), Event("aten::copy_", 1.0, 2)], wall=5.0)
    assert found["linear"] == {"seconds": 3.0, "share": 0.6}
    assert found["outside"]["seconds"] == pytest.approx(1.0)
    assert sum(one["share"] for one in found.values()) == pytest.approx(1.0)
    assert set(found) <= set(operators.GROUPS)


def test_a_profile_sees_the_products():
    layer = nn.Linear(256, 256)
    found = operators.profile(lambda: layer(torch.ones(64, 256)))
    assert found["groups"]["linear"]["seconds"] > 0
    assert any("linear" in one["name"] or "addmm" in one["name"] for one in found["operators"])


def test_configurations_are_those_of_the_published_models():
    from diffusers import UNet2DConditionModel

    for model in MODELS.values():
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(unet_config(model))
        assert sum(parameter.numel() for parameter in unet.parameters()) == model.parameters, model.name


def test_operations_are_those_of_the_layers():
    """Counted a second time by hooks, from the shapes that really go through the layers."""
    from diffusers import UNet2DConditionModel

    model = MODELS["mini-sd"]
    unet = UNet2DConditionModel.from_config(unet_config(model))
    counts = {"convolution": 0, "linear": 0}

    def count(layer, args, output):
        kind = "linear" if isinstance(layer, nn.Linear) else "convolution"
        each = layer.weight[0].numel()
        counts[kind] += 2 * output.numel() * each

    for layer in unet.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    call_unet(unet, inputs_of(model), 500)
    found = operations_of(model)
    assert {kind: found[kind] for kind in counts} == counts
    # two products for each of 2 × heads × queries × keys × head size; blocks at 16², 8² and in the middle at 4²
    assert found["attention"] > 0


def test_inputs_are_the_same_every_time_and_calibration_sees_others():
    model = MODELS["sdxl-512"]
    first, again, other = inputs_of(model), inputs_of(model), inputs_of(model, 0)
    assert first["sample"].shape == (2, 4, 64, 64) and first["encoder_hidden_states"].shape == (2, 77, 2048)
    assert torch.equal(first["sample"], again["sample"]) and not torch.equal(first["sample"], other["sample"])
    assert first["added_cond_kwargs"]["time_ids"].tolist()[0] == [512, 512, 0, 0, 512, 512]


def test_what_peers_need_can_be_made():
    for model in MODELS.values():
        stages = stages_of(model)
        for peer in peers_of(model).values():
            order = [stage.name for stage in in_order(set(peer.stages), stages)]
            assert set(peer.stages) <= set(order)
            for stage in order:
                assert all(order.index(before) < order.index(stage) for before in stages[stage].needs)
