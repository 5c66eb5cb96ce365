# SPDX-License-Identifier: Apache-2.0
"""Figures of the project and the commands that measure them; each record names its commit and machine."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported: it reports to Microsoft and leaves a file
