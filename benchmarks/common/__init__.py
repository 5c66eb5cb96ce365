# SPDX-License-Identifier: Apache-2.0
"""What several benchmarks use: processes, their memory and CPU time, and where a record was measured."""
