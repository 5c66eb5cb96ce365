# SPDX-License-Identifier: Apache-2.0
"""Real product photos -> checkpoint. Programs: `python -m training.train`, `python -m training.evaluate`."""
