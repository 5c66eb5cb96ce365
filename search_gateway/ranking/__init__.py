# SPDX-License-Identifier: Apache-2.0
"""Which results stay, in what order, and why."""
