# SPDX-License-Identifier: Apache-2.0
"""Draws pictures of fashion products, for training, export, demo and benchmarks."""
