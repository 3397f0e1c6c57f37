"""Files that turn a model's folder into an MLflow model of flavour `python_function`."""

import hashlib
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainers.yaml_source import OF_MODEL_CARDS, read_yaml

MODEL_CARD = "model.yaml"
"""The file by which a model's folder is recognised; see `trainers.champion`."""
LOADER_MODULE = "vitsearch.pyfunc"
_REQUIRED = ("vitsearch", "torch", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors")


def write_flavor(mlflow: Any, folder: Path, *, key: str, card: Path) -> None:
    """Write `MLmodel`, requirements and an input example, but no weights, into a new folder.

    The same key and card give the same model id.

    Args:
        mlflow: MLflow's package.
        folder: The folder to make.
        key: Identifies the model.
        card: The model's `model.yaml`.

    Raises:
        ValueError: The card cannot be read, or is damaged.
    """
    try:
        content = read_yaml(card, limits=OF_MODEL_CARDS, version="1.1").data
        task, digest = content["task"], str(content["weights_sha256"])
        example = _example(int(task["image_size"]), int(task["in_channels"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{card} must describe a model, but: {error!r}. Save the model again.") from error
    schema = mlflow.types.schema
    of = mlflow.types.DataType
    outputs = [
        schema.ColSpec(of.string, "label"),
        schema.ColSpec(of.double, "probability"),
        schema.ColSpec(schema.Map(of.double), "probabilities"),
    ]
    signature = mlflow.models.ModelSignature(
        inputs=schema.Schema([schema.ColSpec(of.binary)]), outputs=schema.Schema(outputs)
    )
    # As for a Python model whose type hint is list[bytes]: MLflow then passes input on as it is, so that the loader
    # module can also take paths and arrays, which a table with a column of bytes could not hold.
    signature._is_signature_from_type_hint = True
    model_uuid = hashlib.sha256(f"{key}/{digest}".encode()).hexdigest()[:32]
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=LOADER_MODULE,
        mlflow_model=mlflow.models.Model(model_uuid=model_uuid),
        signature=signature,
        input_example=[example],
        pip_requirements=[
            f"mlflow=={mlflow.__version__}",
            *(f"{name}=={_public(version(name))}" for name in _REQUIRED),
        ],
        metadata={"vitsearch.key": key, "class_names": list(content["class_names"])},
    )


def _example(size: int, num_channels: int) -> bytes:
    """A PNG file with a gradient."""
    from PIL import Image

    picture = Image.linear_gradient("L").resize((size, size))
    buffer = io.BytesIO()
    (picture if num_channels == 1 else picture.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _public(found: str) -> str:
    """A version without its local part: `2.13.0+cpu` is not on an index."""
    return found.partition("+")[0]
