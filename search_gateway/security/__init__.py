# SPDX-License-Identifier: Apache-2.0
"""Who may call the gateway, how often, and what is written down about it: TLS, API keys, quotas, the audit log."""
