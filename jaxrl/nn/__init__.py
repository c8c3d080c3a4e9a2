"""Parts of agents: policy families, critics, encoders, and the networks in them."""
