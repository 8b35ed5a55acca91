"""Sweeps whose trials take no time, so that who runs them can be tested."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from snnreg_plugins.sweeps import Job, Sweep


@dataclass(frozen=True)
class Quick(Job):
    """Scores and costs by a formula; a strength of 13 fails, and each trial leaves a line in a file."""

    seconds: float = 0.0

    def check(self):
        pass

    def run(self, point, seeds, folder):
        with (Path(self.sweep.output).parent / "begun.txt").open("a") as file:
            file.write(f"{os.getpid()} {sorted(point.items())}\n")
        time.sleep(self.seconds)
        strength = next((value for name, value in point.items() if name.endswith("strength")), 0.0)
        if strength == 13:
            raise RuntimeError("no luck")
        known = {"higher_is_better": True, "score_name": "accuracy", "samples": 10, "energy_table": "horowitz_fp32"}
        return [
            {
                **known, "seed": seed, "export": "default", "timesteps": steps, "score": 0.9 - 0.01 * strength,
                "sops": 1000 * steps / (1 + strength), "energy": 1e-9, "effective_macs": 0.0, "dnn_score": 0.91,
                "dnn_effective_macs": 5.0, "seconds": 0.1,
            }
            for seed in seeds
            for steps in self.sweep.all_steps
        ]  # fmt: skip


def quick(output, seconds=0.0, **given):
    """A sweep of four points, one of which fails."""
    how = {"penalties": {"none": None, "l1": {"strength": [1, 13, 2]}}, "steps": [2, 4], "name": "quick", **given}
    return Quick(Sweep("r.yaml", output=str(output), **how), {"trainer": {}}, None, seconds)
