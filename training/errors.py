"""Everything the trainer refuses, each error tied to one step of the way.

TrainingError            the command prints it as one line and exits with 1
├── DataError            data.py: the source, a column or a row
├── ExecutionError       distributed.py, fit.py: no such device or compiler, another process has ended
├── FitError             fit.py: the loss is no longer a number
├── CheckpointError      checkpoint.py: damaged, another run's, a full disk
├── FoldError            fold.py: a layer that can't be folded, by name
└── ExportError          export.py: a layer without an ONNX form, a graph that ONNX refuses
    └── ParityError      certificate.py: the folded model is not the same model
"""


class TrainingError(Exception):
    """A reason not to write a bundle."""


class DataError(TrainingError):
    """The source can't be trained on."""


class FitError(TrainingError):
    """The optimisation failed."""


class ExecutionError(TrainingError):
    """It can't be carried out here: no such device, no compiler, a process that is gone."""


class CheckpointError(TrainingError):
    """A checkpoint can't be read, written or gone on from."""


class FoldError(TrainingError):
    """A layer can't be folded; `layer` is its name in the network."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"layer {layer!r} can't be folded: {reason}")
        self.layer = layer


class ExportError(TrainingError):
    """The folded network can't be written as a valid ONNX graph."""


class ParityError(ExportError):
    """The exported model and the unfolded network disagree by more than the tolerance."""
