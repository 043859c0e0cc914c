"""A fleet of fake engines: one per Running engine pod, with real HTTP, real metrics and simulated GPUs."""
