"""One run: everything that is made beforehand, groups of peers, their rounds, the profile, and the result."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cpu_speed.grouping import plan_groups
from benchmarks.cpu_speed.jobs import Job
from benchmarks.cpu_speed.machine import commit, describe_machine, versions
from benchmarks.cpu_speed.models import Model
from benchmarks.cpu_speed.peers import Peer, peer_named, peers_of, stages_of
from benchmarks.cpu_speed.peers.registry import CEILINGS, COMMON
from benchmarks.cpu_speed.processes import RESERVE_GIB, Child, ChildFailed
from benchmarks.cpu_speed.progress import Progress, say
from benchmarks.cpu_speed.result import Measured, ceilings_of, contestants_result
from benchmarks.cpu_speed.rounds import Contestant, Load, conditions, key_of, run_rounds
from benchmarks.cpu_speed.stages import in_order, is_made, read_stamp

_PROFILED = ("", "relaxed")
_PROFILE = {"HALFTONE_CPU_SPEED_PROFILE": "1"}
_MARGIN_GIB = 0.5


class NothingToMeasure(Exception):
    """What all peers need could not be made; says why."""


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        rounds: timed calls of each contestant.
        peers: names; None for all.
        work: folder with everything that is made once.
        memory_gib: that a group may occupy; None for what is free.
        time_limit: seconds that making one thing, building one peer or one turn may take.
        profile: whether Halftone's call is profiled.
    """

    rounds: int
    peers: Sequence[str] | None
    work: Path
    memory_gib: float | None = None
    time_limit: float = 5400.0
    profile: bool = True


@dataclass
class Run:
    """A run in progress."""

    job: Job
    settings: Settings
    progress: Progress
    not_run: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    groups: list[list[dict[str, float]]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def child(self, task: str, name: str, environment: dict[str, str] | None = None, log: str = "") -> Child:
        """A new child of this run. What torch.compile keeps of an earlier one is removed: it is broken if that was
        killed while it compiled, and would make the start look short if not."""
        of = f"{self.job.model}-{self.job.threads}-{task}-{name}"
        compiled = Path(self.job.work) / "inductor" / of
        shutil.rmtree(compiled, ignore_errors=True)
        variables = {"TORCHINDUCTOR_CACHE_DIR": str(compiled), **(environment or {})}
        path = Path(self.job.work) / "logs" / f"{of}{log}.log"
        return Child(task, name, self.job, path, self.settings.time_limit, variables)


def measure(model: Model, threads: int, settings: Settings) -> dict[str, Any]:
    """The result of one model at one number of threads.

    Raises:
        NothingToMeasure: the weights or the reference output could not be made.
    """
    peers = _chosen(model, settings)
    run = Run(Job(model.name, threads, str(settings.work.absolute())), settings, Progress({}))
    run.not_run.update({name: reason for name, peer in peers.items() if (reason := peer.missing())})
    peers = {name: peer for name, peer in peers.items() if name not in run.not_run}
    has_profile = settings.profile and not model.is_pipeline
    run.progress.plan("peer", len(peers) + has_profile)
    run.progress.plan("turn", len(peers) * settings.rounds)
    _make_stages(run, peers)
    peers = {name: peer for name, peer in peers.items() if name not in run.not_run}
    groups = _groups(run, peers)
    for number, names in enumerate(groups, 1):
        say(f"{model.name}, {threads} threads, group {number} of {len(groups)}: {', '.join(names)}")
        _run_group(run, names, f"{model.name}, {threads} threads, group {number} of {len(groups)}")
    profiles = _profiles(run) if has_profile and COMMON in run.measured else {}
    return _result(run, groups, profiles)


def _chosen(model: Model, settings: Settings) -> dict[str, Peer]:
    """The peers that were asked for, and those that every run has."""
    if settings.peers is None:
        return peers_of(model)
    wanted = {*settings.peers, COMMON, CEILINGS}
    return {name: peer for name, peer in peers_of(model).items() if name in wanted}


def _make_stages(run: Run, peers: dict[str, Peer]) -> None:
    """Makes what the peers start from; what fails takes those with it that need it."""
    known = stages_of(run.job.of)
    wanted = {"reference", *(stage for peer in peers.values() for stage in peer.stages)}
    stages = [stage for stage in in_order(wanted, known) if not is_made(stage, run.job)]
    run.progress.plan("stage", len(stages))
    failed: dict[str, str] = {}
    for stage in stages:
        broken = next((before for before in stage.needs if before in failed), None)
        if broken is not None:
            failed[stage.name] = failed[broken]
            continue
        say(f"making {stage.words} of {run.job.of.weights}")
        try:
            with run.child("stage", stage.name) as child:
                child.ask()
        except ChildFailed as error:
            failed[stage.name] = f"{stage.words} could not be made: {error}"
            say(failed[stage.name])
        run.progress.done("stage", f"{stage.words} done")
    if "reference" in failed:
        raise NothingToMeasure(failed["reference"])
    for name, peer in peers.items():
        reasons = [failed[stage] for stage in peer.stages if stage in failed]
        if reasons:
            _give_up(run, name, reasons[0])


def _groups(run: Run, peers: dict[str, Peer]) -> list[list[str]]:
    """Peers that are held in memory together."""
    free = psutil.virtual_memory().available / 2**30 - RESERVE_GIB - _MARGIN_GIB
    budget = free if run.settings.memory_gib is None else run.settings.memory_gib
    memory = {name: peer.memory_gib(run.job.of) for name, peer in peers.items()}
    groups, refused = plan_groups(memory, (COMMON, CEILINGS), budget)
    for name, reason in refused.items():
        _give_up(run, name, f"memory: {reason}")
    common = len({COMMON, CEILINGS} & set(peers))
    again = common * max(0, len(groups) - 1)
    run.progress.plan("peer", again)
    run.progress.plan("turn", again * run.settings.rounds)
    return groups


def _run_group(run: Run, names: Sequence[str], title: str) -> None:
    """Builds the peers of a group one after another, then times them in turn."""
    with ExitStack() as stack:
        contestants: list[Contestant] = []
        for name in names:
            contestants += _build(run, stack, name)
        failed: dict[str, str] = {}
        times, loads = run_rounds(
            contestants,
            run.settings.rounds,
            lambda: run.progress.done("turn"),
            lambda number: run.progress.say(f"{title}: round {number} of {run.settings.rounds}"),
            failed,
        )
        for one in contestants:
            run.measured[one.key].peak_gib = max(run.measured[one.key].peak_gib, one.peak_gib)
    run.not_run.update({key: f"failed while it was timed: {reason}" for key, reason in failed.items()})
    run.groups.append(times)
    run.loads += loads


def _build(run: Run, stack: ExitStack, name: str) -> list[Contestant]:
    """Starts a peer's process and has it build; its variants."""
    child = stack.enter_context(run.child("peer", name))
    try:
        ready = child.ask()
    except ChildFailed as error:
        _give_up(run, name, str(error))
        return []
    variants, failures = ready["ready"], ready["failures"]
    if not variants:
        child.end()
        _give_up(run, name, next(iter(failures.values()), "it has nothing to run"))
        return []
    peer = peer_named(name, run.job.of)
    run.notes[name] = ready["notes"]
    run.not_run.update({key_of(name, variant): reason for variant, reason in failures.items()})
    for variant, facts in variants.items():
        run.measured.setdefault(key_of(name, variant), Measured(peer, variant, facts, ready))
    run.progress.plan("turn", (len(variants) - 1) * run.settings.rounds)
    run.progress.done("peer", f"{peer.words} is ready")
    return [Contestant(key_of(name, variant), child, variant) for variant in variants]


def _give_up(run: Run, name: str, reason: str) -> None:
    run.not_run[name] = reason
    run.progress.plan("peer", -1)
    run.progress.plan("turn", -run.settings.rounds)
    say(f"{name} is not run: {reason}")


def _profiles(run: Run) -> dict[str, Any]:
    """Where the time of Halftone's call goes, in a process that nothing else was timed in."""
    found: dict[str, Any] = {}
    try:
        with run.child("peer", COMMON, _PROFILE, log="-profile") as child:
            ready = child.ask()["ready"]
            for variant in _PROFILED:
                if variant in ready:
                    found[key_of(COMMON, variant)] = child.ask({"profile": variant})["profile"]
    except ChildFailed as error:
        run.not_run["profile"] = str(error)
    return found


def _result(run: Run, groups: Sequence[Sequence[str]], profiles: dict[str, Any]) -> dict[str, Any]:
    model = run.job.of
    reference = read_stamp(stages_of(model)["reference"].folder(run.job))
    operations = reference.get("operations", {})
    ceilings = ceilings_of(run.measured, run.groups)
    return {
        "model": model.name,
        "title": model.title,
        "threads": run.job.threads,
        "rounds": run.settings.rounds,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": versions(),
        "commit": commit(),
        "load": conditions(run.loads),
        "operations": operations,
        "ceilings": ceilings,
        "groups": [list(names) for names in groups],
        "contestants": contestants_result(run.measured, run.groups, sum(operations.values()), ceilings),
        "not_run": run.not_run,
        "profiles": profiles,
        "notes": {name: note for name, note in run.notes.items() if note},
    }
