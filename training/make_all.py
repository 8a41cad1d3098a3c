"""Makes every bundled model from nothing; run again after an interruption, it goes on where it was."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

STAGES = (  # what runs, and the file that says it is finished
    (["training.dataset"], None),
    (["training.vae"], "vae/model/config.json"),
    (["training.text"], "text/model/config.json"),
    (["training.unet"], None),
    (["training.clip"], None),
    (["training.assemble"], None),
    (["training.evaluate"], None),
)

IN_PARALLEL = ("training.vae", "training.text", "training.unet", "training.clip")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for command, finished in STAGES:
        if finished is None or not (Path("runs") / finished).exists():
            print("==", *command, flush=True)
            launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={os.cpu_count()}", "-m"]
            parallel = launch if command[0] in IN_PARALLEL else []
            subprocess.run([sys.executable, "-m", *parallel, *command], check=True)


if __name__ == "__main__":
    main()
