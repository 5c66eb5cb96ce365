# SPDX-License-Identifier: Apache-2.0
"""The gateway over HTTP: the search service as JSON and server-sent events, and the page that uses it."""
