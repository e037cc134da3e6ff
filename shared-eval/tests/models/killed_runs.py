"""Start the smoke training of registered recipes, each in a process that kills itself in its fourth step.

Usage: killed_runs.py FOLDER NAME[:ema] ...
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Callback

from attn.shared_eval.models import find_recipe
from attn.shared_eval.models.training import fit


class Killed(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def smoke_recipe(run):
    name, _, averaged = run.partition(":")
    return replace(find_recipe(name).narrow(), steps=5, ema=0.9 if averaged else None)


if __name__ == "__main__":
    folder, *runs = sys.argv[1:]
    options = {"callbacks": [Killed()], "enable_progress_bar": False, "logger": False}
    for run in runs:
        child = os.fork()
        if child == 0:
            fit(smoke_recipe(run), Path(folder) / run, trainer_options=options, save_every=2)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{run} was not killed in its fourth step: status {status}")
