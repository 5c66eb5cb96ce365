# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint as three ONNX models, for example with `python -m export.install_models`."""
