# SPDX-License-Identifier: Apache-2.0
"""Builds a catalogue from a folder of photos."""
