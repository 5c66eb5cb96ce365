# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint as three ONNX models, for example with `python -m export.install_models`."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported: it reports to Microsoft and leaves a file
