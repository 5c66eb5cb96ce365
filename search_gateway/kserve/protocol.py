# SPDX-License-Identifier: Apache-2.0
"""The messages of `inference.GRPCInferenceService`, imported from tritonclient here alone.

They are not generated from a .proto of our own, since protobuf's pool does not accept the same names twice.
"""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

SERVICE: str = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

__all__ = ["SERVICE", "model_config_pb2", "service_pb2", "service_pb2_grpc"]
