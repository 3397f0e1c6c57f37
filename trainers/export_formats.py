"""Names of the formats of exported models. Importing this does not import torch."""

from enum import StrEnum


class ExportFormat(StrEnum):
    """Format of an exported model."""

    safetensors = "safetensors"
    torch_export = "torch-export"
    onnx = "onnx"

    @property
    def suffix(self) -> str:
        """Usual suffix of its files."""
        return {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}[self.value]
