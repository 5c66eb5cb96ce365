# SPDX-License-Identifier: Apache-2.0
"""How captions are batched: the scheduler, its request queue, running batches and KV slots."""
