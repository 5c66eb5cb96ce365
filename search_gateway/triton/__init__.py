# SPDX-License-Identifier: Apache-2.0
"""Where the models run: the client of Triton, the pool of replicas, and the embedded Triton."""
