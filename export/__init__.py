# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> the three served ONNX models: `python -m export.install_models`, `python -m export.check_parity`."""
