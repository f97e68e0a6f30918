"""Optimises ONNX files with one tool, in the environment of `folding.txt`.

python optimise_onnx.py TOOL SOURCE TARGET [SOURCE TARGET ...]

If the tool can't optimise a file, the program writes the reason to TARGET with the suffix `.txt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx


def optimise(tool: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Optimise one model."""
    if tool == "onnxslim":
        import onnxslim

        return onnxslim.slim(model)
    if tool == "onnxsim":
        import onnxsim

        return onnxsim.simplify(model)[0]
    if tool == "onnxscript":
        import onnxscript.optimizer

        return onnxscript.optimizer.optimize(model)
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

    fold_all_batch_norms_to_weight(model)
    return model


def main() -> None:
    """Optimise all files."""
    tool, *paths = sys.argv[1:]
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        try:
            onnx.save(optimise(tool, onnx.load(source)), target)
        except Exception as error:  # noqa: BLE001 (a failure is a result here)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:80]
            Path(target).with_suffix(".txt").write_text(reason)


if __name__ == "__main__":
    main()
