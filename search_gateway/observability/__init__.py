# SPDX-License-Identifier: Apache-2.0
"""What operators see of the gateway: metrics, traces, logs, and the admin port that serves them."""
