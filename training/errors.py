"""The errors that the trainer raises on purpose.

Each class of error belongs to one step of a training. The module does not depend on the command line.

Each line of the tree below names a class of error and the modules that raise it. A test checks that the tree agrees
with the code.

TrainingError            cli.py, flags.py: the command prints it as one line and exits with 1
├── DataError            table/, diagnose/, imports/: the source, a column or a row can't be used
├── ExecutionError       fit/: the device or compiler is missing, or another process has ended
├── FitError             fit/, tune.py: the loss is not a finite number, or no trial finishes
├── CheckpointError      fit/: a checkpoint is damaged or of another run, or the disk is full
├── FoldError            fold/, imports/: a layer can't be folded
├── ModelImportError     imports/: a model of another framework can't be read or understood
└── ExportError          fold/: a layer has no ONNX form, or ONNX refuses the graph
    └── ParityError      certify/, imports/: the folded model is not the same model
"""


class TrainingError(Exception):
    """The base class of the trainer's errors. After an error of this class, the trainer writes no bundle."""


class DataError(TrainingError, ValueError):
    """The source can't be used for training."""


class FitError(TrainingError):
    """The optimisation failed."""


class ExecutionError(TrainingError):
    """The run is impossible on this machine: the device or the compiler is missing, or another process of the run has
    ended.
    """


class CheckpointError(TrainingError):
    """A checkpoint can't be read or written, or a run can't continue from the checkpoint."""


class FoldError(TrainingError):
    """A layer can't be folded. `layer` is the name of this layer in the network."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"layer {layer!r} can't be folded: {reason}")
        self.layer = layer


class ModelImportError(TrainingError):
    """The model of another framework is damaged, or a part of the model can't be imported."""


class ExportError(TrainingError):
    """The folded network can't be written as a valid ONNX graph."""


class ParityError(ExportError):
    """The exported model and the unfolded network differ by more than the tolerance."""
