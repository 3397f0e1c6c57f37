"""Champions as models of MLflow's flavour `python_function`: `mlflow.pyfunc.load_model`, `mlflow models serve`.

The file `MLmodel` of a registered champion names this module, so its name and `_load_pyfunc` must not change. Nothing
here imports MLflow.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.data.listing import DataError

if TYPE_CHECKING:
    import pandas as pd

    from trainers.champion import Predictor

_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""Variable that MLflow's scoring server sets."""


class ServedClassifier:
    """A champion with the interface that MLflow expects."""

    def __init__(self, predictor: "Predictor") -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> "pd.DataFrame":  # noqa: ARG002
        """The class of each image.

        Args:
            model_input: One image or several: bytes of an image file, such bytes in base64, the path of a file (not in
                a server, whose clients must not read its files), pixels (H, W) or (H, W, C) of type uint8, or a Pillow
                image; several are a list, a table with one column, or an array (N, H, W, C).
            params: Not used.

        Returns:
            A row for each image: `label`, its `probability`, and `probabilities` by class.

        Raises:
            DataError: Something is not an image; the message names it.
        """
        import pandas as pd

        class_names = self._predictor.card.class_names
        predictions = self._predictor.predict(as_images(model_input), top=len(class_names))
        rows = []
        for one in predictions:
            found = dict(one.top)
            probabilities = {name: found[name] for name in class_names}
            rows.append({"label": one.label, "probability": one.probability, "probabilities": probabilities})
        return pd.DataFrame(rows, columns=["label", "probability", "probabilities"])


def as_images(model_input: Any) -> Any:
    """What MLflow passes on, in a form that `Predictor.predict` takes.

    Raises:
        DataError: A table has several columns, or a text is neither a file nor an image in base64.
    """
    if hasattr(model_input, "columns"):
        if len(model_input.columns) != 1:
            raise DataError(
                f"a table of images must have one column, but has {len(model_input.columns)}. Leave out the others."
            )
        model_input = model_input.iloc[:, 0]
    if hasattr(model_input, "iloc") or (isinstance(model_input, np.ndarray) and model_input.dtype.kind in "OSU"):
        model_input = list(model_input)
    if isinstance(model_input, list | tuple):
        return [_as_image(f"images[{index}]", one) for index, one in enumerate(model_input)]
    return _as_image("the image", model_input)


def _as_image(name: str, given: Any) -> Any:
    """One image; text becomes a path or bytes, and nested lists become pixels."""
    if isinstance(given, str):
        return _from_text(name, given)
    if isinstance(given, list):  # pixels in a request
        pixels = np.asarray(given)
        if pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
            return pixels.astype(np.uint8)
        raise DataError(f"{name} must be rows of pixels, whole numbers from 0 to 255, but is not. Scale the values.")
    return given


def _from_text(name: str, text: str) -> Path | bytes:
    is_served = os.environ.get(_SERVING, "").lower() == "true"
    if not is_served and len(text) < 4096 and Path(text).exists():
        return Path(text)
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        if not is_served:
            return Path(text)  # which is reported as missing
        raise DataError(
            f"{name} must be an image file in base64, but is other text. Encode the file's bytes."
        ) from error
    return content


def _load_pyfunc(path: str) -> ServedClassifier:
    """Called by MLflow with the folder of a model."""
    from orchestrator.cli.quiet import quiet_libraries
    from trainers.champion import load_model

    quiet_libraries()
    return ServedClassifier(load_model(Path(path)))
