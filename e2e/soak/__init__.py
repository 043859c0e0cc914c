"""An hour of traffic, churn and faults on a real control plane: what grows, what is lost, what nobody explains."""
