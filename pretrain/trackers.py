"""The same numbers for Weights & Biases and MLflow, through their own libraries.

Where they go is theirs to say: `WANDB_PROJECT`, `WANDB_MODE`, `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` etc.
Each life of a run is a run there, named after the run folder. A tracker that fails says so once, and training goes on.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from shards.errors import UserError

TrackerName = Literal["wandb", "mlflow"]
PROJECT = "duostream"
MOST_AT_ONCE = 100  # settings in one request to an MLflow server


class Tracker(Protocol):
    """Takes numbers by name at steps that grow."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuses a tracker whose library is not installed.

    Raises:
        UserError: it is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"`run.track` (={name}) needs its library: pip install 'duostream[{name}]'")


def open_trackers(names: Sequence[TrackerName], run: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Opens each; `settings` by dotted name go with the run."""
    return [Forgiving(name, partial(TRACKERS[name], run, settings)) for name in names]


class Forgiving:
    """A tracker that stops at its first failure, which costs a sentence and not the training."""

    def __init__(self, name: str, start: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", start()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if tracker := self._tracker:
            self._try(lambda: tracker.log(step, values))

    def close(self) -> None:
        if tracker := self._tracker:
            self._try(tracker.close)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a foreign library raises
            self._tracker = None
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"{self._name} gets no more numbers, training goes on: {reason}", file=sys.stderr)


class WeightsAndBiases:
    """A run of `wandb`, whose files lie in the run folder."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(
            project=project, name=run.name, group=run.name, dir=str(run), config=dict(settings), settings=_quiet()
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _quiet() -> Any:
    import wandb

    return wandb.Settings(console="off", silent=True)


class MLflow:
    """A run of `mlflow`."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=run.name)
        known = [(name, value) for name, value in settings.items() if value is not None]
        for start in range(0, len(known), MOST_AT_ONCE):
            mlflow.log_params(dict(known[start : start + MOST_AT_ONCE]))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # A file store keeps metrics in files of their names: `loss` cannot stand beside `loss/itc`.
        sums = {name.partition("/")[0] for name in values if "/" in name}
        named = {f"{name}/all" if name in sums else name: value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
