# SPDX-License-Identifier: Apache-2.0
"""The providers of candidates: one module each, which implements `Provider` of `search_gateway.providers.base`."""
