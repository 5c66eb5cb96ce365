# SPDX-License-Identifier: Apache-2.0
"""How a catalogue is stored and searched."""
