# SPDX-License-Identifier: Apache-2.0
"""What protects a provider on the web: cache, shared calls, rate limit and circuit breaker."""
