"""Makes an exported model a version of a model in MLflow's registry."""

from pathlib import Path
from uuid import uuid4

from mlflow.exceptions import MlflowException

from mmx.builtin.trackers.mlflow import Mlflow
from mmx.contracts import Tracker
from mmx.errors import InputError


def register(tracker: Tracker, run_id: str, folder: Path, name: str) -> str:
    """Keep an exported folder with its run, and make it a version of a model in the store's registry."""
    if not isinstance(tracker, Mlflow):
        raise InputError(
            f"tracker '{type(tracker).__name__}' has no registry of models; leave --register out"
        )
    with tracker.connection.asked():
        try:
            tracker.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            tracker.client.create_registered_model(name)
        place = f"model-{uuid4().hex[:8]}"  # a place of its own, since a version never changes
        tracker.client.log_artifacts(run_id, str(folder), place)
        source = f"{tracker.client.get_run(run_id).info.artifact_uri}/{place}"
        return str(tracker.client.create_model_version(name, source, run_id).version)
