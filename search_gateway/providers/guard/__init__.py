# SPDX-License-Identifier: Apache-2.0
"""Protects a provider on the web, and the gateway from it: cache, shared calls, rate limit and circuit breaker."""
