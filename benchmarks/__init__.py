# SPDX-License-Identifier: Apache-2.0
"""Figures of the project and the commands that measure them; each record names its commit and machine."""
