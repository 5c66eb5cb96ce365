# SPDX-License-Identifier: Apache-2.0
"""Pictures of fashion products that are drawn by code: training, export, demo and benchmarks use them."""
