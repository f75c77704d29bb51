"""Pictures and plots: grids, films, curves, the drawing of the UNet, and the figures of visualize.py."""
