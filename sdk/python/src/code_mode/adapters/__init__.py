"""A session as the tools of an agent framework; each module needs its framework."""
