# SPDX-License-Identifier: Apache-2.0
"""The messages of `inference.GRPCInferenceService`, from tritonclient: the only file that takes them from there.

They are not generated again from a .proto of our own: two files that register the same names break protobuf's pool.
"""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

SERVICE: str = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

__all__ = ["SERVICE", "model_config_pb2", "service_pb2", "service_pb2_grpc"]
