# SPDX-License-Identifier: Apache-2.0
"""Stubs of `search_api/search.proto`. `make proto` writes them; do not edit them.

They register the same descriptor file, `search_api/search.proto`, with the same content as the server's stubs in
`search_api/`, so both may be imported in one process: protobuf then uses one set of message classes.
"""
