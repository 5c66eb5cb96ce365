# SPDX-License-Identifier: Apache-2.0
"""KServe's inference protocol, version 2, over gRPC: the pipeline as two models that Triton's own tools can call."""
