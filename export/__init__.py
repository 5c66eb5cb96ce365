# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> the three served ONNX models. Programs: `python -m export.install_models`, `python -m export.check_parity`."""
