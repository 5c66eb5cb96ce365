# SPDX-License-Identifier: Apache-2.0
"""`python -m drawings FOLDER` writes a catalogue of drawings; `--help` lists the options."""

from drawings.draw_samples import main

main()
