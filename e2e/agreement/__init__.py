"""One scenario on a real control plane and in the simulator: do the same decisions come of it?"""
