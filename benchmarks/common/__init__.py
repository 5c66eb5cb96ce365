# SPDX-License-Identifier: Apache-2.0
"""What several benchmarks use: processes and their resource usage, photos, reports, and the origin of figures."""
