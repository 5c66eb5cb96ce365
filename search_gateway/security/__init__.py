# SPDX-License-Identifier: Apache-2.0
"""TLS, API keys, quotas and the audit log: the callers, their rights, and the record of their calls."""
