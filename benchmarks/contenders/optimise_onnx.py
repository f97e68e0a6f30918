"""Optimises an ONNX file with one tool, in the environment of `folding.txt`.

python optimise_onnx.py TOOL SOURCE TARGET
"""

from __future__ import annotations

import sys

import onnx


def main() -> None:
    """Optimise one file."""
    tool, source, target = sys.argv[1:]
    model = onnx.load(source)
    if tool == "onnxslim":
        import onnxslim

        model = onnxslim.slim(model)
    elif tool == "onnxsim":
        import onnxsim

        model, _ = onnxsim.simplify(model)
    elif tool == "onnxscript":
        import onnxscript.optimizer

        model = onnxscript.optimizer.optimize(model)
    elif tool == "aimet":
        from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

        fold_all_batch_norms_to_weight(model)
    onnx.save(model, target)


if __name__ == "__main__":
    main()
