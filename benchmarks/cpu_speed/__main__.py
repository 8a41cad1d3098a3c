"""How fast full-size UNets run on this CPU: Halftone and its peers, in interleaved rounds.

    python -m benchmarks.cpu_speed --model sd15 --threads 1 2

Everything is made here from random weights; nothing is downloaded. Each peer has a process of its own and runs when it
is its turn. Runs are added to --out (a run of the same model and threads is replaced), and --markdown's page gets the
table of all of them. The peers come with ``pip install halftone[benchmarks]``; what is missing or fails is reported
with its reason. What is made once stays in --work (11 GB for SD 1.5, 35 GB for SDXL) for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.cpu_speed.models import MODELS, Model, model_named
from benchmarks.cpu_speed.peers import peer_named, peers_of
from benchmarks.cpu_speed.progress import say
from benchmarks.cpu_speed.run import NothingToMeasure, Settings, measure
from benchmarks.cpu_speed.table import NoPlace, markdown, with_results
from halftone.errors import HalftoneError
from halftone.files import write_atomically

VERSION = 1


def main() -> None:
    """Command line; exits with 2 and a sentence where something is wrong, with 1 where a model could not be run."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended too
    try:
        models = [model_named(name) for name in args.model or ["sd15"]]
        _check_peers(args.peers, models)
        if args.list:
            print(listing(models))
            return
        done = args.render or _measure_all(models, args)
        _render(args)
    except (HalftoneError, NoPlace) as error:
        print(f"benchmarks.cpu_speed: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted; finished runs are kept")
        sys.exit(130)
    sys.exit(not done)


def listing(models: list[Model]) -> str:
    """Models and peers, and why a peer cannot run here."""
    lines = [f"models: {', '.join(MODELS)}"]
    for model in models:
        lines.append(f"{model.name} ({model.title}):")
        for peer in peers_of(model).values():
            missing = peer.missing()
            lines.append(f"  {peer.name:22} {peer.words}{f' – not run: {missing}' if missing else ''}")
    return "\n".join(lines)


def read_result(path: Path) -> dict[str, Any]:
    """The runs so far."""
    if not path.exists():
        return {"version": VERSION, "runs": {}}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _measure_all(models: list[Model], args: argparse.Namespace) -> bool:
    """Runs every model at every number of threads, and writes each result at once. Whether all could be run."""
    settings = Settings(args.rounds, args.peers, args.work, args.memory, profile=not args.no_profile)
    if args.fresh:
        for model in models:
            shutil.rmtree(args.work / model.weights, ignore_errors=True)
            shutil.rmtree(args.work / model.name, ignore_errors=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    all_done = True
    for model in models:
        for threads in args.threads:
            try:
                run = measure(model, threads, settings)
            except NothingToMeasure as error:
                say(f"{model.name}, {threads} threads: {error}")
                all_done = False
                continue
            result = read_result(args.out)
            result["runs"][f"{model.name}, {threads} threads"] = run
            write_atomically(args.out, json.dumps(result, indent=1) + "\n")
    return all_done


def _render(args: argparse.Namespace) -> None:
    """Prints the table and puts it into the page."""
    result = read_result(args.out)
    print(markdown(result))
    if args.markdown is not None:
        write_atomically(args.markdown, with_results(args.markdown.read_text(encoding="utf-8"), result))


def _check_peers(names: list[str] | None, models: list[Model]) -> None:
    for model in models:
        for name in names or ():
            peer_named(name, model)


def _threads() -> list[int]:
    return [count for count in (1, 2) if count <= (os.cpu_count() or 1)]


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", action="append", metavar="NAME", help=f"{', '.join(MODELS)} (repeatable; sd15)")
    parser.add_argument("--threads", type=_at_least(1), nargs="+", default=_threads())
    parser.add_argument("--rounds", type=_at_least(2), default=7, help="timed turns of each contestant")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only these, besides halftone-bf16 and the ceilings")
    parser.add_argument("--list", action="store_true", help="only say what there is to run")
    parser.add_argument("--render", action="store_true", help="only make the tables of --out anew")
    parser.add_argument("--out", type=Path, default=Path("docs/speed.json"))
    parser.add_argument("--markdown", type=Path, help="page that gets the tables, such as docs/speed.md")
    parser.add_argument("--work", type=Path, default=Path("runs/cpu-speed"), help="what is made once, and logs")
    parser.add_argument("--memory", type=float, metavar="GIB", help="that peers may occupy together; what is free")
    parser.add_argument("--fresh", action="store_true", help="make everything anew")
    parser.add_argument("--no-profile", action="store_true")
    return parser


if __name__ == "__main__":
    main()
