# SPDX-License-Identifier: Apache-2.0
"""How a catalogue is built from a folder of photos."""
