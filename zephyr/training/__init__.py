"""A plan, a policy and an objective become a trained policy and its records."""
