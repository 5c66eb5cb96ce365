# SPDX-License-Identifier: Apache-2.0
"""Where candidates come from: one module per provider, each a `Provider` of `search_gateway.providers.base`."""
