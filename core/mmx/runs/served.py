"""The code of an exported model: MLflow copies this file beside the weights and runs it to load them."""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from mmx.errors import InputError
from mmx.runs.predictor import Predictor

ARTIFACT = "mmx"
"""Name of the folder with weights and facts."""


class ServedModel(PythonModel):  # type: ignore[misc]
    """Predicts tables in which any cell may be null."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model, from the folder alone."""
        self.predictor = Predictor.load(Path(context.artifacts[ARTIFACT]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict; what is wrong with the table becomes an answer 400 of MLflow's server."""
        del context, params
        try:
            return self.predictor.predict(pd.DataFrame(model_input))
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


set_model(ServedModel())
